"""Measures: each file is one score."""
