"""Plantbench: models for which do-interventions show what they use, and scores of verdicts on them
(docs/plantbench.md).
"""
