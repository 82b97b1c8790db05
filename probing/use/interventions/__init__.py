"""Holds the interventions, one per file; each is one way to edit states."""
