"""Holds the measures, one per file, which score the predictions of a probe."""
