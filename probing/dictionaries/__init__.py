"""Sparse dictionaries of hidden states: autoencoders and transcoders, read, checked on states of the user, encoded."""
