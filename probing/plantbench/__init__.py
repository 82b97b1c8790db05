"""Plantbench: models whose truth is known by do-interventions, and a score for verdicts (docs/plantbench.md)."""
