"""Checks of arrays before they are probed: what float32 loses, and copies of rows in train and test."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, ProbingWarning

_BLOCK = 256  # columns that are checked at once
_ROUNDING = 0.05  # of a column's standard deviation, that rounding to float32 may add
_JITTER = 1e-12  # relative spread up to which a column of float64 is constant but for errors of computing it


def check_rounding(matrix: NDArray[Any], narrow: NDArray[np.float32], where: str) -> None:
    """Raise BadParameter if float32 does not hold what tells the rows of a column apart.

    Columns near zero may vanish beside others, as small probabilities do; but not all of them.
    """
    vanished, lost = 0, []
    for first in range(0, matrix.shape[1], _BLOCK):
        wide = matrix[:, first : first + _BLOCK].astype(np.float64)
        with np.errstate(all="ignore"):  # what is not finite is refused elsewhere
            spread, size = wide.std(0), np.abs(wide).max(0)
            error = (narrow[:, first : first + _BLOCK] - wide).std(0)
            is_lost = (error > _ROUNDING * spread) & (spread > _JITTER * size)
        vanished += int((is_lost & (size < np.finfo(np.float32).tiny)).sum())
        lost += (first + np.flatnonzero(is_lost & (size >= np.finfo(np.float32).tiny))).tolist()
    if lost or vanished == matrix.shape[1]:
        raise BadParameter(
            "states that float32 does not tell apart",
            needed="columns whose differences are large enough beside their mean",
            found=f"{len(lost):,} columns, the first of them {lost[0]}" if lost else "all values below 1e-38",
            where=where,
            next_step="subtract the mean of each column and divide by its standard deviation",
        )


def warn_of_copies(states: Mapping[str, NDArray[np.float32]], splits: Sequence[str]) -> None:
    """Warn if rows of test have the states of a row of train: a probe can remember what it should read."""
    if not all(np.isfinite(state).all() for state in states.values()):
        return  # they are refused with their rows named
    rows = [hash(tuple(state[i].tobytes() for state in states.values())) for i in range(len(splits))]
    seen = {row for row, split in zip(rows, splits, strict=True) if split == "train"}
    tested = [row for row, split in zip(rows, splits, strict=True) if split == "test"]
    copies = sum(row in seen for row in tested)
    if copies:
        warnings.warn(
            f"{copies:,} of {len(tested):,} test rows have the same states as a train row: if they are copies of one "
            "input, a probe that only remembers it looks as if it read the label; give such rows one group (groups=)",
            ProbingWarning,
            stacklevel=3,
        )
