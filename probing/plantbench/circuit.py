"""Circuit: a transformer described in named slots, before it has weights of any family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.seeds import generator

Floats = NDArray[np.float64]

WIDTH, LAYERS, HEADS, HEAD_WIDTH, UNITS = 128, 4, 4, 32, 64
SHARPNESS = 40.0  # of attention to the flagged word: the others get less than 1e-13


@dataclass(frozen=True)
class Head:
    """An attention head that copies slots: from the word whose key slot is set, or from all words alike.

    Attributes:
        layer: of the block.
        key: the slot that draws attention; "" spreads it evenly over the words so far.
        copies: (slot read there, slot written here, gain): HEAD_WIDTH at most.
    """

    layer: int
    key: str
    copies: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Unit:
    """Hidden units of an MLP: relu(Σ reads · slot) is added to the slots of `writes`; with `times`, multiplied by it.

    Slots are read after the block's norm; what is written is scaled back by the usual size `norm` of the query's state.
    """

    layer: int
    reads: Mapping[str, float]
    writes: Mapping[str, float]
    times: str = ""


@dataclass(frozen=True)
class Circuit:
    """Everything that the weights are made from. V pieces, S slots, K answers.

    Attributes:
        slots: names; each gets a direction of its own.
        pieces: `(V, S)` embeddings.
        positions: `(T, S)` position codes; None: the family has none.
        heads: of all layers.
        units: of all layers.
        answers: `(K, S)` what the unembedding reads for each answer.
        first_answer: id of the first answer.
        norm: usual root mean square of the query's state.
    """

    slots: tuple[str, ...]
    pieces: Floats
    positions: Floats | None
    heads: tuple[Head, ...]
    units: tuple[Unit, ...]
    answers: Floats
    first_answer: int
    norm: float

    def index(self, slot: str) -> int:
        """Return the column of a slot."""
        return self.slots.index(slot)

    def coordinates(self, slots: Mapping[str, float]) -> Floats:
        """Return a sum of slots, `(S,)`."""
        found = np.zeros(len(self.slots))
        for name, size in slots.items():
            found[self.index(name)] = size
        return found


def basis(n_slots: int, seed: int) -> Floats:
    """Return `(WIDTH, S)` orthonormal columns, all orthogonal to the vector of ones, so that centring leaves them
    alone.
    """
    drawn = generator(seed, "basis").standard_normal((WIDTH, n_slots))
    whole, _ = np.linalg.qr(np.column_stack([np.ones(WIDTH), drawn]))
    return np.asarray(whole[:, 1:])
