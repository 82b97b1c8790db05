"""Behaviour under interventions, with effects, standard errors and nulls (use.md's experiment): see `experiment`."""
