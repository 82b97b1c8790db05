"""Builds models for which it is known what they use, and counts how often verdicts on them are wrong (Plantbench; see
docs/plantbench.md).
"""
