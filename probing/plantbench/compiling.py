"""Planted circuits as models."""

from __future__ import annotations

from probing.plantbench.gpt2_compile import gpt2
from probing.plantbench.llama_compile import llama
from probing.plantbench.planted_model import PlantedModel
from probing.plantbench.tier1_cases import Planted


def compiled(planted: Planted) -> PlantedModel:
    """The model of a tier-1 case."""
    make = gpt2 if planted.family == "gpt2" else llama
    model = make(planted.circuit, length=planted.language.length, seed=planted.seed)
    return PlantedModel(model, planted.language)
