"""Instruments: models whose states can be exchanged at fixed rows, and their behaviour measured."""
