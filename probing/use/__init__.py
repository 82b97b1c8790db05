"""Tests whether a model uses a property: edits the states at a place while the model runs, and measures how its output
changes.
"""
