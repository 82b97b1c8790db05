"""Finds the parts of a model by running it on a small text, without knowing model families by name."""
