"""Probes: each file is one family of readers."""
