"""Runs models on fixed rows (sentences or words) with other states at chosen places, and measures their behaviour (a
chosen part of the output).
"""
