"""The activation store: immutable HDF5 shards, each made valid by a commit record."""
