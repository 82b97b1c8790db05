"""Holds the measures, one a file, which score the predictions of a probe."""
