"""Holds the adapters of models, one per file; each reads the states of one kind of model with forward hooks."""
