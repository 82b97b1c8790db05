"""Pairs as probes of pairs read them: plain rows split in halves, and batches of whole sentences. R words, N pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.errors import BadParameter, DegenerateDesign
from probing.labels import Pairs
from probing.seeds import generator

Ints = NDArray[np.int64]
_LEAST_STEPS = 50  # an epoch


@dataclass(frozen=True)
class Batch:
    """A few sentences: their words and pairs.

    Attributes:
        words: `(n,)` rows of the table.
        a, b: `(m,)` the two words of every pair, counted within `words`.
        rows: `(m,)` the pairs, as rows of what was given.
        sentence: `(m,)` sentence of every pair, counted within the batch.
        choice: `(m,)` choice of every pair, counted within the batch; None: no choices.
        n_sentences, n_choices: how many.
    """

    words: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    rows: torch.Tensor
    sentence: torch.Tensor
    choice: torch.Tensor | None
    n_sentences: int
    n_choices: int


class Sentences:
    """Pairs laid out sentence by sentence, so that a batch is a few slices."""

    def __init__(self, pairs: Pairs) -> None:
        self._rows = np.argsort(pairs.group, kind="stable")
        groups, start = np.unique(pairs.group[self._rows], return_index=True)
        self.row_start = np.append(start, len(pairs))
        n_table, index = len(pairs.table), pairs.index[self._rows]
        ordinal = np.repeat(np.arange(len(groups)), np.diff(self.row_start))
        used, place = np.unique(ordinal[:, None] * n_table + index, return_inverse=True)
        self._words = used % n_table
        self.word_start = np.searchsorted(used, np.arange(len(groups) + 1) * n_table)
        self._index = place.reshape(index.shape) - self.word_start[ordinal][:, None]
        self._choice = None if pairs.choice is None else pairs.choice[self._rows]

    def batches(self, n_words: int, order: Ints) -> Iterator[Batch]:
        """Yield batches of sentences in the order given, of at least one sentence and about `n_words` words."""
        sizes = np.diff(self.word_start)[order]
        n_words = max(2, min(n_words, int(sizes.sum()) // _LEAST_STEPS))
        number = (np.cumsum(sizes) - sizes) // n_words
        for chosen in np.split(order, np.flatnonzero(np.diff(number)) + 1):
            yield self._batch(chosen)

    def _batch(self, chosen: Ints) -> Batch:
        words, rows = _ranges(self.word_start, chosen), _ranges(self.row_start, chosen)
        n_rows = np.diff(self.row_start)[chosen]
        n_words = np.diff(self.word_start)[chosen]
        index = self._index[rows] + np.repeat(np.cumsum(n_words) - n_words, n_rows)[:, None]
        choice, n_choices = None, 0
        if self._choice is not None:
            distinct, codes = np.unique(self._choice[rows], return_inverse=True)
            choice, n_choices = torch.from_numpy(codes.reshape(-1)), len(distinct)
        return Batch(
            words=torch.from_numpy(self._words[words]),
            a=torch.from_numpy(index[:, 0]),
            b=torch.from_numpy(index[:, 1]),
            rows=torch.from_numpy(self._rows[rows]),
            sentence=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_rows)),
            choice=choice,
            n_sentences=len(chosen),
            n_choices=n_choices,
        )

    def __len__(self) -> int:
        return len(self.row_start) - 1


def _ranges(start: Ints, chosen: Ints) -> Ints:
    """Return all of `start[i] … start[i+1]-1` for the chosen i, end to end."""
    counts = start[chosen + 1] - start[chosen]
    ends = np.cumsum(counts)
    return np.repeat(start[chosen] - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


def halves(X: NDArray[Any]) -> Pairs:
    """Return plain rows `(N, 2D)` as pairs, each a sentence of its own; an odd width gets a column of zeros."""
    n, width = X.shape
    if width % 2:
        X = np.concatenate([X, np.zeros((n, 1), X.dtype)], axis=1)
    table = np.concatenate(np.split(X, 2, axis=1)).astype(np.float32, copy=False)
    return Pairs(table, np.arange(2 * n).reshape(2, n).T.copy(), np.arange(n))


def check_row_form(pairs: Pairs, who: str) -> None:
    """Refuse pairs that are combined already.

    Raises:
        BadParameter: their difference or product is all there is.
    """
    if pairs.row_form not in ("pair", "ends"):
        raise BadParameter(
            f"{who} reads both words of a pair",
            needed="pairs that are not combined",
            found=f"their {pairs.row_form}",
            next_step="name the task without :difference or :product",
        )


def held_out(pairs: Pairs, seed: int) -> tuple[Ints, Ints]:
    """Return the rows of nine tenths of the sentences, and of one tenth; the same rows twice where there is one
    sentence.
    """
    groups, codes = np.unique(pairs.group, return_inverse=True)
    if len(groups) < 2:
        return np.arange(len(pairs)), np.arange(len(pairs))
    order = generator(seed, "held out").permutation(len(groups))
    is_held = np.isin(codes.reshape(-1), order[: max(1, len(groups) // 10)])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def check_choices(pairs: Pairs, y: NDArray[np.int64]) -> None:
    """Refuse choices with no or several right pairs.

    Raises:
        DegenerateDesign: see above.
    """
    if pairs.choice is None:
        return
    _, codes = np.unique(pairs.choice, return_inverse=True)
    right = np.bincount(codes.reshape(-1), y == 1)
    if (right != 1).any():
        raise DegenerateDesign(
            "a choice needs exactly one right pair",
            needed="one row of label 1 in each",
            found=f"{int((right != 1).sum())} choices without or with several",
        )
