"""Model adapters: each file is one way to read the states of a kind of model by hooks."""
