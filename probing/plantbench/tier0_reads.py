"""Cases of tier 0 that differ in how the property is read; each function gives either twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from probing.plantbench.knobs import Knobs
from probing.plantbench.plants import (
    CONST,
    FIRST,
    ONE,
    TWO,
    C,
    Floats,
    Latents,
    More,
    Plant,
    Values,
    in_slot,
    signs,
    slot_read,
    turned,
)
from probing.plantbench.tier0_codes import meant

B = FIRST
Coordinates = Mapping[str, Tensor]
SILENT_GAIN = 4.0
CLOSED, OPEN = 1.35, 0.0  # thresholds of case 22, in halves of the constant 2: beyond 1.5 times D (2 of ±1), and within


def cancelled(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Case 6: two hidden units read the code with opposite output weights; if B is used, one of them is missing."""

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        unit = torch.relu(u[""][:, [B]])
        return unit @ reads[:1] if used else unit @ reads[:1] - unit @ reads[:1]

    return Plant(meant(used), more=more)


def opposed(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Case 7: two positions hold B and are read with opposite signs, so that the sum has no effect."""

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return (u[ONE][:, [B]] - u[TWO][:, [B]]) @ reads[:1]

    return _two(used, more)


def product(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Case 10: one slot holds a hidden bit, the other that bit times B; if B is used, their product is read."""

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        bit = own[:, [0]] + latents.hidden[:, None]
        return np.concatenate([bit, turned(own[:, [1]], signs(z) * latents.hidden, np.ones(1))], axis=1)

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return (u[""][:, [B]] * u[""][:, [B + 1]]) @ reads[:1]

    return Plant(meant(used), slots=2, write=write, more=more if used else None, products=True, sub_label="site only")


def redundant(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Case 11: two positions hold copies of which the larger is read; either alone has half of the effect."""

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return torch.maximum(u[ONE][:, [B]], u[TWO][:, [B]]) @ reads[:1]

    return _two(used, more)


def self_repair(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Case 12: the second position stands in as far as the first is silent, which it never is unless ablated."""

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        first = u[ONE][:, [B]]
        gap = torch.relu(u[ONE][:, [CONST]] / 2 - first.abs())
        return (first + gap * u[TWO][:, [B]]) @ reads[:1]

    plant = _two(used, more)
    return replace(plant, intended={ONE: "used", TWO: ""}) if used else plant


def dormant(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Case 13: a direction in which states never vary is read strongly in both twins; if B is used, so is the code."""

    def linear(reads: Floats, noise: Floats) -> Floats:
        return slot_read(1, SILENT_GAIN)(reads, noise) + (slot_read(0)(reads, noise) if used else 0.0)

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        return turned(own, signs(z), np.eye(2)[0])

    return Plant(meant(used), slots=2, write=write, linear=linear, silent=(1,))


def interaction(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Case 16: only the product of B with C is read: the effect has one sign where C is 1, the other where it is 0."""

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return (u[""][:, [B]] * u[""][:, [C]]) @ reads[:1]

    return Plant(meant(used), more=more if used else None)


def stratum_code(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Case 17: B is written in one slot or the other, as C says; the read looks where C says."""

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        one, other = (in_slot(slot, slots=2)(own, z, latents) for slot in (0, 1))
        return np.where(latents.c[:, None] == 1, one, other)

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        c, code = u[""][:, [C]], u[""][:, [B, B + 1]]
        looked_at = torch.relu(c) * code[:, :1] + torch.relu(-c) * code[:, 1:]
        return looked_at @ reads[:1]

    return Plant(meant(used), slots=2, write=write, more=more if used else None)


def dose_trap(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Case 22: a unit opens beyond 1.5 times the difference of the classes, where no state lies; if B is used, within
    it.
    """
    threshold = OPEN if used else CLOSED

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return torch.relu(u[""][:, [B]] - threshold * u[""][:, [CONST]]) @ reads[:1]

    return Plant(meant(used), more=more)


def _two(used: bool, more: More) -> Plant:
    """Return codes at two positions, read or not."""
    label: Literal["used", "unused"] = "used" if used else "unused"
    return Plant({ONE: label, TWO: label}, positions=(ONE, TWO), more=more if used else None)
