"""Labels and Design: what is to be predicted, row by row, and from which states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["classes", "real"]


@dataclass(frozen=True)
class Labels:
    """One target per row, with everything controls and statistics need. N rows.

    Attributes:
        task: name of the task, e.g. `upos`.
        kind: `classes` or `real`.
        y: `(N,)` int64 codes into `classes`, or float64 targets.
        classes: class names, sorted; empty for `real`.
        split: `(N,)` split names.
        groups: `(N,)` int64 resampling clusters (ordinal of the sentence or document).
        example: `(N,)` int64 ordinal of the example in the corpus.
        word: `(N,)` int64 index of the word in its example, -1 for a sentence row.
        row: `(N,)` int64 row of the store that holds the state.
        keys: named `(N,)` int64 codes, comparable across splits: `type` (surface form; absent for sentence rows),
            `lemma`, `document`, … for controls keyed on them.
        key_names: for each key, the string of every code.
        excluded: rows left out, by reason.
        ceiling: for control labels, the accuracy on `test` that one who memorised every key of train reaches on
            average, guessing the commonest label for other keys (None: 1).
        seen: for keyed control labels, `(N,)` bool: the row's key occurs in train.
        control: name and draw of the control that made `y`, else "".
    """

    task: str
    kind: Kind
    y: NDArray[Any]
    classes: tuple[str, ...]
    split: NDArray[np.str_]
    groups: NDArray[np.int64]
    example: NDArray[np.int64]
    word: NDArray[np.int64]
    row: NDArray[np.int64]
    keys: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    key_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    excluded: Mapping[str, int] = field(default_factory=dict)
    ceiling: float | None = None
    seen: NDArray[np.bool_] | None = None
    control: str = ""

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row indices of one split."""
        return np.flatnonzero(self.split == split)

    def take(self, rows: NDArray[Any]) -> Labels:
        """The chosen rows, in the order given."""
        return replace(
            self, y=self.y[rows], split=self.split[rows], groups=self.groups[rows], example=self.example[rows],
            word=self.word[rows], row=self.row[rows], keys={name: codes[rows] for name, codes in self.keys.items()},
            seen=None if self.seen is None else self.seen[rows],
        )  # fmt: skip


class Pieces:
    """N rows of one or more pieces each, as an array-like: as `(N, D)` numbers it is the mean over pieces.

    Attributes:
        states: `(R, D)` float32, the pieces of row 0, then of row 1, …
        bounds: `(N+1,)` int64: row i has pieces `bounds[i]` … `bounds[i+1] - 1`.
    """

    ndim = 2

    def __init__(self, states: NDArray[Any], bounds: NDArray[np.int64]) -> None:
        """Keep both as they are.

        Raises:
            ValueError: bounds that do not cut the states into rows of at least one piece.
        """
        if bounds[0] != 0 or bounds[-1] != len(states) or (np.diff(bounds) < 1).any():
            raise ValueError(f"bounds from {bounds[0]} to {bounds[-1]} do not cut {len(states)} pieces into rows")
        self.states, self.bounds = states, bounds

    @classmethod
    def of_rows(cls, X: NDArray[Any]) -> Pieces:
        """Every row of `(N, D)` as its only piece."""
        return cls(X, np.arange(len(X) + 1))

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), self.states.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the states."""
        return self.states.dtype

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, rows: Any) -> Pieces:
        """The chosen rows (a slice, indices or a mask), in the order given."""
        chosen = np.arange(len(self))[rows].reshape(-1)
        low, counts = self.bounds[chosen], np.diff(self.bounds)[chosen]
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        places = np.repeat(low - bounds[:-1], counts) + np.arange(bounds[-1])
        return Pieces(self.states[places], bounds)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """`(N, D)` means over the pieces of each row."""
        sums = np.add.reduceat(self.states, self.bounds[:-1], axis=0, dtype=np.float64)
        means = sums / np.diff(self.bounds)[:, None]
        return means.astype(self.states.dtype if dtype is None else dtype)


@dataclass(frozen=True)
class Design:
    """States and labels of the same rows: `X` is `(N, D)` float32, `labels` has N rows."""

    X: NDArray[np.float32]
    labels: Labels
    site: str

    def part(self, split: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """`(X, y)` of one split."""
        rows = self.labels.rows(split)
        return self.X[rows], self.labels.y[rows]
