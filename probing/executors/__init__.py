"""Who does the work: one file is one executor."""
