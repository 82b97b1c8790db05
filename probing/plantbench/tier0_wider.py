"""Cases 23 to 43 of tier 0 (models of latent vectors): many classes, documents, majorities, effects near the smallest
effect of interest ε, few rows, other groups.

There are functions that build the plant of a twin, and functions that change the knobs for some cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from probing.plantbench.case import zipf_shares
from probing.plantbench.certifying import USED
from probing.plantbench.knobs import Knobs
from probing.plantbench.plants import (
    FIRST,
    Builder,
    Floats,
    Ints,
    KnobsOf,
    Latents,
    Plant,
    Values,
    in_slot,
    slot_read,
)
from probing.plantbench.tier0_codes import of_classes, opposed, plain

B = FIRST
MARGIN = 5e-4  # effects above ε are planted that much larger than they are called, others that much smaller
SATURATED, QUIET = 4.0, 0.5  # of case 31: a voter's gain, and its most noise, which leaves ±0.5 or more
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")


def many_classes(which: int, *, zipf: bool) -> Builder:
    """Return the builder of a case from 23 to 28: `knobs.many[which]` classes, equally frequent or with Zipf
    frequencies.
    """

    def build(used: bool, knobs: Knobs, seed: int) -> Plant:
        k = knobs.many[which]
        return of_classes(used, k, zipf_shares(k, knobs.tail) if zipf else None)

    return build


def documents(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of cases 29 and 30: all rows of a document have one label of property B; they also share noise,
    which the behaviour depends on.
    """
    return replace(plain(used, knobs, seed), by_group=True)


def majority(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 31: several positions hold property B and their majority is read, so that no position
    has an effect alone, but all together do.
    """
    positions = ORDINALS[: knobs.voters]
    clean = in_slot(0)

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        return clean(np.clip(own, -QUIET, QUIET), z, latents)

    def more(u: Mapping[str, Tensor], reads: Tensor) -> Tensor:
        votes = torch.stack([torch.clamp(SATURATED * u[p][:, [B]], -1, 1) for p in positions])
        return torch.clamp(votes.sum(0), -1, 1) @ reads[:1]

    return Plant(
        dict.fromkeys(positions, "unused"),
        positions=positions,
        write=write,
        more=more if used else None,
        joint="used" if used else "unused",
    )


def of_size(which: int) -> Builder:
    """Return the builder of a case from 32 to 35: property B is read with the gain at which the size S of its effect is
    a given multiple of ε. For multiples up to 1, no label is intended.
    """

    def build(used: bool, knobs: Knobs, seed: int) -> Plant:
        multiple = knobs.multiples[which]
        label: Literal["used", ""] = "used" if multiple > 1 else ""

        def at_gain(gain: float) -> Plant:
            return Plant({"": label}, linear=slot_read(0, gain), target=_target(multiple), at_gain=at_gain)

        return at_gain(USED)

    return build


def small_opposed(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 36: two positions hold property B and are read with opposite signs, so weakly that the
    size S of the effect is a small multiple of ε; all of the effect is orthogonal to the natural contrast.
    """
    plant = opposed(used, knobs, seed)
    if not used or plant.more is None:
        return plant
    whole = plant.more

    def at_gain(gain: float) -> Plant:
        return replace(
            plant, more=lambda u, reads: gain * whole(u, reads), target=_target(knobs.off_multiple), at_gain=at_gain
        )

    return at_gain(USED)


def crossing_groups(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 43: in every group, half of the rows have label 0 of property B and the other half have
    label 1.
    """

    def draw(rng: np.random.Generator, a: Ints, c: Ints, types: Ints | None, knobs: Knobs) -> Ints:
        groups = np.arange(len(a)) // knobs.group_size
        return np.asarray((np.arange(len(a)) + rng.integers(0, 2, int(groups[-1]) + 1)[groups]) % 2, np.int64)

    return replace(plain(used, knobs, seed), draw=draw)


def _target(multiple: float) -> float:
    return multiple * USED * (1 + MARGIN if multiple > 1 else 1 - MARGIN)


def fewer_rows(knobs: Knobs, seed: int) -> Knobs:
    """Return knobs for many classes: all rows, half or a quarter of them (by seed mod 3), and louder noise."""
    return replace(knobs, n=knobs.n // (1, 2, 4)[seed % 3], noise_gain=knobs.loud)


def zipf_documents(knobs: Knobs, seed: int) -> Knobs:
    """Return knobs with a third of the rows, in documents of Zipf sizes."""
    return replace(_in_groups(knobs, knobs.document_share), grouping="zipf")


def treebank_documents(knobs: Knobs, seed: int) -> Knobs:
    """Return knobs with a third of the rows, in documents of log-normal sizes: a few hold most rows."""
    return replace(zipf_documents(knobs, seed), grouping="lognormal")


def wide(which: int) -> KnobsOf:
    """Return a function that changes the knobs (settings) of a case: a tenth of the rows, and states whose width is
    `knobs.wide[which]` times the number of rows.
    """

    def knobs_of(knobs: Knobs, seed: int) -> Knobs:
        rows = max(2 * (knobs.n // 20), 48)
        width = max(int(knobs.wide[which] * rows), knobs.width)
        return replace(knobs, n=rows, width=width, n_pairs=knobs.n_pairs // 2, noise_gain=knobs.loud)

    return knobs_of


def groups_of_size(which: int) -> KnobsOf:
    """Return a function that gives knobs with a third of the rows, in groups of `knobs.group_sizes[which]` rows, whose
    noise has the share `knobs.mixed_share` in common.
    """
    return lambda knobs, seed: _in_groups(knobs, knobs.mixed_share, size=knobs.group_sizes[which])


def mixed_groups(knobs: Knobs, seed: int) -> Knobs:
    """Return knobs with a third of the rows, in groups of random sizes from 1 to `knobs.largest`."""
    return replace(_in_groups(knobs, knobs.mixed_share), grouping="mixed")


def even_groups(knobs: Knobs, seed: int) -> Knobs:
    """Return knobs with a third of the rows, in groups of six, whose noise has the share `document_share` in common."""
    return _in_groups(knobs, knobs.document_share, size=6)


def _in_groups(knobs: Knobs, share: float, *, size: int = 1) -> Knobs:
    return replace(knobs, n=knobs.n // 3, group_size=size, group_share=share, noise_gain=knobs.loud)
