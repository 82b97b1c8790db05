"""Corpus readers: each file contains the reader of one format."""
