"""Behaviours: each file measures one kind of model output."""
