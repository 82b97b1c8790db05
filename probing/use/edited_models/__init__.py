"""Instruments: models that run on fixed rows with their states replaced at chosen places, while their behaviour (a
chosen part of the output) is measured.
"""
