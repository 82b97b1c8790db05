"""Behaviours: what of a model's outputs is measured; one file is one member."""
