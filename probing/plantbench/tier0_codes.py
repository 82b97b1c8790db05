"""Cases 1 to 22 of tier 0, models of latent vectors that differ in how property B is written into the states or read
from them; each function returns the `Plant` of one twin of a case.

Every case has three labelled properties A, B and C. The *code* of a property is the vector that stands for its value in
the state; a *slot* is one coordinate of the state before it is rotated at random. Of the two *twins* of a case, the
used twin is the model whose output depends on B; in the unused twin it does not. "To read" is to let the output (the
behaviour) depend on a coordinate. All functions take `used` (whether the twin is the used one), the knobs (settings)
and the seed of the case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.plantbench.knobs import Knobs
from probing.plantbench.plants import (
    CONST,
    FIRST,
    ONE,
    TWO,
    C,
    Draw,
    Floats,
    Ints,
    Latents,
    More,
    Plant,
    Values,
    in_slot,
    signs,
    slot_read,
    turned,
    unread,
)
from probing.seeds import generator

SHARED_SLOTS = 16
RADIANS = 0.5  # of case 19, for one SD


def meant(used: bool) -> dict[str, Literal["used", "unused", ""]]:
    """Return the label that the builder intends for the only position, as a mapping from its name "" to `used` or
    `unused`.
    """
    return {"": "used" if used else "unused"}


def plain(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 1: the code of B has a slot of its own, which only the used twin reads."""
    return Plant(meant(used), linear=slot_read(0) if used else unread)


def absent(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 2: the labels of B are not written into the states at all, in either twin."""
    return Plant(meant(False), write=lambda own, z, latents: own)


def high_norm(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 3: the vector that codes B is `knobs.norm` long, several times as long as the vectors
    that code A and C; the used twin reads it.
    """
    return Plant(meant(used), write=in_slot(0, length=knobs.norm), linear=slot_read(0) if used else unread)


def unequal_length(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 4: no twin reads the code. It is ±3 or, in the used twin, 0 and 6, so that normalisation
    of the state rescales all other coordinates.
    """
    if not used:
        return Plant(meant(False), write=in_slot(0, length=3.0))
    return Plant(meant(True), write=lambda own, z, latents: own + 6.0 * z[:, None], sub_label="norm-mediated")


def correlated(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 5: B is correlated with A, which both twins read; the used twin also reads B."""
    rho = knobs.rhos[seed % len(knobs.rhos)]

    def as_a(rng: np.random.Generator, a: Ints, c: Ints, types: Ints | None, knobs: Knobs) -> Ints:
        return np.where(rng.random(len(a)) < (1 + rho) / 2, a, 1 - a)

    return Plant(meant(used), draw=as_a, linear=slot_read(0) if used else unread)


def weak(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 8: the used twin reads the code with the small gain `knobs.weak`, so the effect is
    small; all of it is mediated by this place.
    """
    return Plant(meant(used), linear=slot_read(0, knobs.weak) if used else unread)


def distributed(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 9: the code of B is spread over 16 slots. Both twins read the noise in these slots in
    directions orthogonal to the code; the used twin also reads the code.
    """
    direction = np.full(SHARED_SLOTS, SHARED_SLOTS**-0.5)

    def linear(reads: Floats, noise: Floats) -> Floats:
        beside = noise - np.outer(direction, direction @ noise)
        return beside + np.outer(direction, reads[0]) if used else beside

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        return turned(own, signs(z), direction)

    return Plant(meant(used), slots=SHARED_SLOTS, write=write, linear=linear)


def five_classes(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 18: each class of B has its own slot; the noise of the slots is permuted with the class,
    so that all classes have states of the same length.
    """
    return of_classes(used, knobs.classes)


def of_classes(used: bool, k: int, shares: NDArray[np.float64] | None = None) -> Plant:
    """Return a plant in which B has k classes with one slot each, equally frequent or with frequencies `shares` `(k,)`;
    the used twin reads the slots.
    """

    def draw(rng: np.random.Generator, a: Ints, c: Ints, types: Ints | None, knobs: Knobs) -> Ints:
        return rng.integers(0, k, len(a)) if shares is None else rng.choice(k, len(a), p=shares)

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        coded = own + np.eye(k)[0]
        moved = (np.arange(k) - np.asarray(z, np.int64)[:, None]) % k
        return np.take_along_axis(coded, moved, axis=1)

    return Plant(
        meant(used),
        slots=k,
        n_classes=k,
        draw=draw,
        write=write,
        linear=(lambda reads, noise: reads) if used else unread,
    )


def continuous(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 19: B is a real value, coded as an angle on an arc of radius 2, so that all codes are
    equally long; the used twin reads the sine of the angle.
    """

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        cosine, sine = np.cos(RADIANS * z), np.sin(RADIANS * z)
        x, y = 2.0 + own[:, 0], own[:, 1]
        return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=1)

    return Plant(
        meant(used),
        slots=2,
        n_classes=0,
        write=write,
        linear=slot_read(1) if used else unread,
        draw=lambda rng, a, c, types, knobs: rng.standard_normal(len(a)),
    )


def rare(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 20: class 1 of B is rare, with the share `knobs.rare` of the rows (2 % by default); the
    used twin reads the code.
    """
    draw: Draw = lambda rng, a, c, types, knobs: (rng.random(len(a)) < knobs.rare).astype(np.int64)  # noqa: E731
    return Plant(meant(used), draw=draw, linear=slot_read(0) if used else unread)


def identity_label(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant (specification of a model) of case 21: each identity (word type) has a random label of B and a
    random vector. Both twins read the vectors, so that labels and behaviour are associated by chance; the used twin
    also reads the code of B.
    """
    of_type = np.arange(knobs.identities) % 2
    generator(seed, "plantbench", 0, 21, "partition").shuffle(of_type)

    def draw(rng: np.random.Generator, a: Ints, c: Ints, types: Ints | None, knobs: Knobs) -> Ints:
        return np.asarray(of_type[types], np.int64).reshape(-1)

    return Plant(meant(used), draw=draw, linear=slot_read(0) if used else unread, by_identity=True)


B = FIRST
Coordinates = Mapping[str, Tensor]
SILENT_GAIN = 4.0
CLOSED, OPEN = 1.35, 0.0  # thresholds of case 22, in halves of the constant 2: beyond 1.5 times D (2 of ±1), and within


def cancelled(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 6: two hidden units read the code of B with opposite output weights, so that they
    cancel; in the used twin one of them is missing.
    """

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        unit = torch.relu(u[""][:, [B]])
        return unit @ reads[:1] if used else unit @ reads[:1] - unit @ reads[:1]

    return Plant(meant(used), more=more)


def opposed(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 7: two positions hold B, and the used twin reads them with opposite signs, so that
    exchanging both at once has no effect.
    """

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return (u[ONE][:, [B]] - u[TWO][:, [B]]) @ reads[:1]

    return _two(used, more)


def product(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 10: one slot holds a hidden bit, the other that bit times B; the used twin reads their
    product.
    """

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        bit = own[:, [0]] + latents.hidden[:, None]
        return np.concatenate([bit, turned(own[:, [1]], signs(z) * latents.hidden, np.ones(1))], axis=1)

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return (u[""][:, [B]] * u[""][:, [B + 1]]) @ reads[:1]

    return Plant(meant(used), slots=2, write=write, more=more if used else None, products=True, sub_label="site only")


def redundant(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 11: two positions hold copies of B, and the used twin reads the larger of the two;
    either position alone has half of the effect.
    """

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return torch.maximum(u[ONE][:, [B]], u[TWO][:, [B]]) @ reads[:1]

    return _two(used, more)


def self_repair(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 12: two positions hold B. The second is read with a weight that is 0 unless the code at
    the first is near 0, as it is after the first is ablated.
    """

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        first = u[ONE][:, [B]]
        gap = torch.relu(u[ONE][:, [CONST]] / 2 - first.abs())
        return (first + gap * u[TWO][:, [B]]) @ reads[:1]

    plant = _two(used, more)
    return replace(plant, intended={ONE: "used", TWO: ""}) if used else plant


def dormant(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 13: both twins read, with a large weight, a direction in which states never vary; the
    used twin also reads the code of B.
    """

    def linear(reads: Floats, noise: Floats) -> Floats:
        return slot_read(1, SILENT_GAIN)(reads, noise) + (slot_read(0)(reads, noise) if used else 0.0)

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        return turned(own, signs(z), np.eye(2)[0])

    return Plant(meant(used), slots=2, write=write, linear=linear, silent=(1,))


def interaction(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 16: the used twin reads only the product of B with C, so the effect of B has one sign
    where C is 1 and the other where C is 0.
    """

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return (u[""][:, [B]] * u[""][:, [C]]) @ reads[:1]

    return Plant(meant(used), more=more if used else None)


def stratum_code(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 17: the value of C decides in which of two slots the code of B is written; the used twin
    reads the slot that C selects.
    """

    def write(own: Floats, z: Values, latents: Latents) -> Floats:
        one, other = (in_slot(slot, slots=2)(own, z, latents) for slot in (0, 1))
        return np.where(latents.c[:, None] == 1, one, other)

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        c, code = u[""][:, [C]], u[""][:, [B, B + 1]]
        looked_at = torch.relu(c) * code[:, :1] + torch.relu(-c) * code[:, 1:]
        return looked_at @ reads[:1]

    return Plant(meant(used), slots=2, write=write, more=more if used else None)


def dose_trap(used: bool, knobs: Knobs, seed: int) -> Plant:
    """Return the plant of case 22: a hidden unit opens only when the code of B is moved by more than 1.5 times the
    difference between classes, where no state lies; in the used twin it opens within that difference.
    """
    threshold = OPEN if used else CLOSED

    def more(u: Coordinates, reads: Tensor) -> Tensor:
        return torch.relu(u[""][:, [B]] - threshold * u[""][:, [CONST]]) @ reads[:1]

    return Plant(meant(used), more=more)


def _two(used: bool, more: More) -> Plant:
    """Return codes at two positions, read or not."""
    label: Literal["used", "unused"] = "used" if used else "unused"
    return Plant({ONE: label, TWO: label}, positions=(ONE, TWO), more=more if used else None)
