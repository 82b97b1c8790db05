"""Tests whether a model's behaviour depends on a property through the states at a place: edits, effects, verdicts."""
