"""Holds the probes and baselines, one per file."""
