"""Interventions: each file is one way to edit states."""
