"""Reads states by hooks, and runs the model on from the middle."""
