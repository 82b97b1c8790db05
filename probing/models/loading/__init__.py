"""Loading a model: its files, sizes, trust and identity, all checked before anything is built."""
