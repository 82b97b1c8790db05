"""Holds the interventions, one a file; each is one way to edit states."""
