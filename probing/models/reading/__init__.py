"""Reads states by forward hooks, and runs only the later blocks of a model from given states."""
