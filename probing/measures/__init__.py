"""Measures: one file is one score."""
