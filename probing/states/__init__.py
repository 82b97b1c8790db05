"""Extracts hidden states, stores them, and imports those of other tools."""
