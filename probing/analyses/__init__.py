"""Analyses: each file combines many fits of a probe at one site into one result."""
