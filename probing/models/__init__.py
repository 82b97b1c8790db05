"""Loads models, finds their parts, and reads their states."""
