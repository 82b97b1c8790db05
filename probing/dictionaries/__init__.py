"""Reads, trains and checks sparse dictionaries of hidden states (autoencoders, transcoders), and encodes states with
them.
"""
