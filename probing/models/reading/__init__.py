"""Reads states by forward hooks, and runs models from an inner block on."""
