"""Cluster bootstrap, intervals, and corrections for multiple tests."""
