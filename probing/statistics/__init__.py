"""Computes cluster bootstraps, intervals, and corrections for multiple tests."""
