"""Instruments: run a model on fixed rows with other states at chosen places, and measure its behaviour."""
