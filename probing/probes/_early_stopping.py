"""The dev data of probes that stop early: rows held out where there are none, and codes of the dev labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import DegenerateDesign
from probing.seeds import generator


def held_out_rows(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return nine tenths and one tenth of the rows, at least one each."""
    order = generator(seed, "held out").permutation(n)
    count = max(1, n // 10)
    if n <= count:
        return order, order
    return np.sort(order[count:]), np.sort(order[:count])


def dev_codes(classes: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    """Return the codes of dev labels, -1 for labels that training never saw."""
    places = np.searchsorted(classes, y).clip(0, len(classes) - 1)
    return np.where(classes[places] == y, places, -1).astype(np.int64)


def require_scored(coded: list[NDArray[np.int64]]) -> None:
    """Refuse dev labels of which training saw none.

    Raises:
        DegenerateDesign: no dev row can be scored.
    """
    if any((codes < 0).all() for codes in coded):
        raise DegenerateDesign(
            "no dev row can be scored",
            needed="dev rows whose label occurs in training",
            found="none",
            next_step="check that train and dev share their label column and classes",
        )
