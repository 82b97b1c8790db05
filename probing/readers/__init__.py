"""Holds the readers of corpora, one a file for each format."""
