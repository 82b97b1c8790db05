"""Executors, which run units of work: each file is one executor."""
