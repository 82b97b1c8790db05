"""Loads a model: checks its files and sizes, and whether they can be trusted, before anything is built."""
