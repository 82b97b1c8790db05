"""Probes: one file is one family of readers."""
