"""Instruments: models whose states can be exchanged, and what they do then."""
