"""Holds the readers of corpora, one per format and file."""
