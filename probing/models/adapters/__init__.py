"""Holds the adapters of models, one a file; each reads the states of one kind of model with forward hooks."""
