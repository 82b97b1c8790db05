"""Holds the behaviours, one a file; each measures one kind of model output."""
