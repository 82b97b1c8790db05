"""Model adapters: each file holds a class that reads the states of one kind of model with forward hooks."""
