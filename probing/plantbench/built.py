"""Built: a planted model of tier 1 or 2 with what is meant of it, ready to be certified and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from probing.contracts.edited_model import Place
from probing.plantbench.case import Cell, Twin
from probing.plantbench.certifying import Claim, every_cell
from probing.plantbench.circuit import basis
from probing.plantbench.gpt2_compile import gpt2
from probing.plantbench.llama_compile import llama
from probing.plantbench.planted_model import PlantedModel
from probing.plantbench.tier1_cases import CASES, Labels, Planted
from probing.plantbench.tier2_models import Recipe
from probing.plantbench.tier2_training import Trained
from probing.provenance import digest

# The generator of tiers 1 and 2: another one gives other models or prompts, and cells of other labels.
VERSION = 1

_CODED_TOGETHER = {10: (("U", "V"), ("copy.U", "copy.V")), 17: (("B.C", "C"), ("copy.B.C", "copy.C"))}


@dataclass(frozen=True, eq=False)
class Built:
    """A model and its description.

    Attributes:
        tier, number, name, twin: of the case; number 0: of no single case of the list.
        seed: of the generator.
        family: of the weights.
        configuration: all else that it depends on, as JSON has it.
        claim: what is to be certified.
    """

    tier: int
    number: int
    name: str
    twin: Twin
    seed: int
    family: str
    configuration: Mapping[str, Any]
    claim: Claim

    @property
    def planted(self) -> PlantedModel:
        """The planted model itself."""
        return self.claim.planted

    @property
    def configuration_sha256(self) -> str:
        """SHA-256 of the generator's version and the configuration."""
        return digest([VERSION, dict(self.configuration)])


def compiled(planted: Planted) -> Built:
    """Return the model of a tier-1 case; this takes about 0.02 s."""
    make = gpt2 if planted.family == "gpt2" else llama
    model = PlantedModel(make(planted.circuit, length=planted.language.length, seed=planted.seed), planted.language)
    circuit, spec = planted.circuit, CASES[planted.number]
    columns = dict(zip(circuit.slots, basis(len(circuit.slots), planted.seed).T, strict=True))
    directions = {f"{slot}.subject": columns[slot] for slot in "ABC" if slot in columns}
    directions |= {f"{slot}.query": columns[f"copy.{slot}"] for slot in "ABC" if f"copy.{slot}" in columns}
    products = tuple((columns[x], columns[y]) for x, y in _CODED_TOGETHER.get(planted.number, ()))
    intended = _cells(planted.intended)
    cells = tuple(intended) if spec.cells is not None else every_cell(model)
    claim = Claim(model, planted.name, intended, cells, _cells(planted.sub_labels), directions, products)
    twin: Twin = "used" if planted.twin == "used" else "unused"
    settings = {
        "number": planted.number,
        "twin": twin,
        "family": planted.family,
        "seed": planted.seed,
        "rho": planted.rho,
    }
    return Built(1, planted.number, spec.name, twin, planted.seed, planted.family, settings, claim)


def of_training(recipe: Recipe, model: Trained) -> Built:
    """Return a trained model with what is meant of it."""
    direction = model.direction.numpy().astype(np.float64)
    claim = Claim(
        model.planted,
        f"tier2-{recipe.family}-{recipe.seed}",
        _cells(recipe.intended),
        every_cell(model.planted),
        directions={"B.query": direction / np.linalg.norm(direction)},
    )
    return Built(2, 0, "trained", "", recipe.seed, recipe.family, asdict(recipe), claim)


def _cells(labels: Labels) -> dict[Cell, str]:
    return {Cell(Place(site, position), name): label for (name, site, position), label in labels.items()}
