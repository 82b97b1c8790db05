"""Corpus readers: each file reads one format."""
