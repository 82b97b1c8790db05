"""Reads states by hooks, and runs models from the middle on."""
