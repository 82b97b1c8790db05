"""Corpus readers: one file is one format."""
