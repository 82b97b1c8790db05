"""Holds the probes and baselines, one a file."""
