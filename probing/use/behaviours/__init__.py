"""Holds the behaviours, one per file; each measures one kind of model output."""
