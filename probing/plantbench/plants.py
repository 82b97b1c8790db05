"""Plant: how property B of a tier-0 case is drawn, written into its slots (coordinates of the state before rotation),
and read from them into the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from probing.plantbench.case import SubLabel
from probing.plantbench.knobs import Knobs

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]
Values = Ints | NDArray[np.float64]

CONST, A, C, FIRST = 0, 1, 2, 3  # slots; B's begin at FIRST
SITE = "resid.0"
ONE, TWO = "first", "second"


@dataclass(frozen=True, eq=False)
class Latents:
    """Holds the latent values of n rows: the values of B, and everything that stays the same when B is changed.

    Attributes:
        a, c, z: `(n,)` values of the properties A, C and B.
        hidden: `(n,)` a random bit ±1, which is no labelled property.
        groups, types: `(n,)` codes of groups and of identities (None: rows have no identities).
        noise: by position, `(n, d)` float32.
    """

    a: Ints
    c: Ints
    z: Values
    hidden: Floats
    groups: Ints
    types: Ints | None
    noise: Mapping[str, Floats]


Draw = Callable[[np.random.Generator, Ints, Ints, Ints | None, Knobs], Values]
Write = Callable[[Floats, Values, Latents], Floats]
Linear = Callable[[Floats, Floats], Floats]
More = Callable[[Mapping[str, Tensor], Tensor], Tensor]


def fair(rng: np.random.Generator, a: Ints, c: Ints, types: Ints | None, knobs: Knobs) -> Ints:
    """Draw classes 0 and 1 of property B, `(n,)`, with `knobs.balance` as the probability of class 1."""
    return (rng.random(len(a)) < knobs.balance).astype(np.int64)


def signs(z: Values) -> Floats:
    """Return −1 for class 0 and +1 for class 1."""
    return np.asarray(2.0 * z - 1)


def turned(own: Floats, sign: Floats, direction: Floats, length: float = 1.0) -> Floats:
    """Return noise `(n, k)` plus a code ± `length` along a unit direction `(k,)`; the noise changes sign with the code.

    Since the noise is symmetric, this has the distribution of code plus noise; but the two rows of a minimal pair have
    states of equal length.
    """
    along = own @ direction
    return np.asarray(own + np.outer(sign * (length + along) - along, direction), own.dtype)


def in_slot(slot: int, *, slots: int = 1, length: float = 1.0) -> Write:
    """Return a function that writes the code ± `length` of a binary property into one of B's slots."""
    direction = np.eye(slots)[slot]
    return lambda own, z, latents: turned(own, signs(z), direction, length)


def unread(reads: Floats, noise: Floats) -> Floats:
    """Return weights of 0 on B's slots."""
    return np.zeros_like(reads)


def slot_read(slot: int, gain: float = 1.0) -> Linear:
    """Return a function that gives the weights `(slots, V)`: the read vector of one slot times `gain`, 0 on the
    others.
    """

    def weights(reads: Floats, noise: Floats) -> Floats:
        found = np.zeros_like(reads)
        found[slot] = gain * reads[slot]
        return found

    return weights


def flipped(rng: np.random.Generator, z: Values, n_classes: int) -> Values:
    """Return another value for each row: another class, drawn by the frequencies in z, or a new standard
    normal value.
    """
    if not n_classes:
        return rng.standard_normal(len(z))
    codes = np.asarray(z, np.int64)
    if n_classes == 2:
        return 1 - codes
    others = np.tile(np.bincount(codes, minlength=n_classes).astype(np.float64), (n_classes, 1))
    np.fill_diagonal(others, 0.0)
    if not others[codes].any(1).all():  # rows of one class: its others are all alike
        others = 1 - np.eye(n_classes)
    upper = np.cumsum(others, axis=1)
    drawn = (1 - rng.random(len(codes))) * upper[codes, -1]  # above 0, so that no empty class is met
    return np.asarray((drawn[:, None] > upper[codes]).sum(1), np.int64)


@dataclass(frozen=True, eq=False)
class Plant:
    """Specifies how property B is written into the states and read from them, in one twin of one case.

    Attributes:
        intended: intended label by position; "" if certification alone decides.
        slots: number of slots of B.
        positions: positions of the only site; A, C and the noise are read at the first position.
        n_classes: number of classes of B; 0 for real values, which are standard normal.
        draw, write: function that draws B's values, and function that writes them into its slots, given their noise.
        linear: function that returns the weights `(slots, V)` on B's slots at the first position, from read vectors and
            noise reads.
        more: function that returns what else is added to the behaviour, from normalised coordinates `(n, d)` and read
            vectors.
        silent: slots that have no noise.
        by_identity: whether rows have identities, whose vectors are in slots of which most are read.
        by_group: whether rows of a group have the same value of B.
        products: whether B can be read only from products of its slots.
        sub_label: intended sub-label, where it matters.
        joint: intended label of all positions together, if there are several.
        target: intended size S of the effect at the first position; 0: the knobs decide.
        at_gain: function that returns the same plant read with another gain, which is chosen to reach `target`.
    """

    intended: Mapping[str, Literal["used", "unused", ""]]
    slots: int = 1
    positions: tuple[str, ...] = ("",)
    n_classes: int = 2
    draw: Draw = fair
    write: Write = field(default_factory=lambda: in_slot(0))
    linear: Linear = unread
    more: More | None = None
    silent: tuple[int, ...] = ()
    by_identity: bool = False
    by_group: bool = False
    products: bool = False
    sub_label: SubLabel = ""
    joint: Literal["used", "unused", ""] = ""
    target: float = 0.0
    at_gain: Callable[[float], Plant] | None = None


Builder = Callable[[bool, Knobs, int], Plant]
KnobsOf = Callable[[Knobs, int], Knobs]
