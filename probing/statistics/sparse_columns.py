"""Scores every column of a sparse matrix as a classifier of rows by itself: differences of class means, areas under the
ROC curve, and the cut with the largest F1, for all columns at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def mean_differences(X: Any, y: NDArray[np.int64], n_classes: int) -> Floats:
    """Return, for each column of `(n, m)`, sparse or not, the difference between its mean over the rows of a class and
    its mean over all other rows, in absolute value: the largest over the classes, `(m,)`.

    With two classes this is |mean(class 1) − mean(class 0)|; classes without rows are left out.
    """
    inside = (y == np.arange(n_classes)[:, None]).astype(X.dtype)
    sums = np.asarray((X.T @ inside.T).T, np.float64)
    counts = inside.sum(1, dtype=np.float64)[:, None]
    has_both = (counts[:, 0] > 0) & (counts[:, 0] < len(y))
    sums, counts, total = sums[has_both], counts[has_both], sums.sum(0)
    if not len(sums):
        return np.zeros(X.shape[1])
    return np.asarray(np.abs(sums / counts - (total - sums) / (len(y) - counts)).max(0))


@dataclass(frozen=True, eq=False)
class SortedColumns:
    """Holds the positive entries of a sparse matrix, by column and then from the largest value to the smallest; entries
    of a column with equal values form one step.

    Attributes:
        shape: number of rows n and of columns m.
        rows: `(N,)` row of each entry.
        step: `(N,)` step of each entry.
        columns, values: `(S,)` column and value of each step.
    """

    shape: tuple[int, int]
    rows: NDArray[np.int64]
    step: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Floats

    @classmethod
    def of(cls, X: Any) -> SortedColumns:
        """Sort the entries of a matrix of `scipy.sparse` `(n, m)`; entries that are not positive count as 0."""
        given = X.tocoo()
        is_active = given.data > 0
        rows, columns = (np.asarray(part, np.int64)[is_active] for part in (given.row, given.col))
        values = np.asarray(given.data, np.float64)[is_active]
        order = np.lexsort((-values, columns))
        rows, columns, values = rows[order], columns[order], values[order]
        is_new = np.ones(len(rows), bool)
        is_new[1:] = (columns[1:] != columns[:-1]) | (values[1:] != values[:-1])
        return cls(X.shape, rows, np.cumsum(is_new) - 1, columns[is_new], values[is_new])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """First step of each column that has one."""
        return np.flatnonzero(np.concatenate([[True], self.columns[1:] != self.columns[:-1]])[: len(self.columns)])

    @property
    def active(self) -> NDArray[np.int64]:
        """Columns with a positive entry."""
        return self.columns[self._starts]

    def _counts(self, is_counted: Flags) -> Floats:
        """Return how many of the rows that are counted each step has."""
        return np.asarray(np.bincount(self.step, is_counted[self.rows], len(self.columns)), np.float64)

    def _from_start(self, of_step: Floats) -> Floats:
        """Return sums over the steps of a column up to each step, that step included."""
        sums = np.cumsum(of_step)
        before = np.repeat(sums[self._starts] - of_step[self._starts], np.diff([*self._starts, len(of_step)]))
        return np.asarray(sums - before)

    def areas(self, has: Flags) -> Floats:
        """Return, for each column, the probability that a row of the class has a larger value than another row; equal
        values, such as two zeros, count half, `(m,)`. `has` says which rows have the class, `(n,)`.
        """
        n_own, n_others = int(has.sum()), int((~has).sum())
        own, others = self._counts(has), self._counts(~has)
        above = self._from_start(own)
        won = np.asarray(np.bincount(self.columns, others * (above - own / 2), self.shape[1]), np.float64)
        own_active = np.bincount(self.columns, own, self.shape[1])
        others_silent = n_others - np.bincount(self.columns, others, self.shape[1])
        won = won + others_silent * (own_active + (n_own - own_active) / 2)
        return np.asarray(won / max(1, n_own * n_others))

    def best_cuts(self, has: Flags, fired: Flags) -> tuple[Floats, Floats]:
        """Return, for each column, the largest F1 of the rule "the row has fired before, or its value is at least the
        cut", and that cut, `(m,)` each; columns without a positive entry have F1 0 and the cut infinity.

        Args:
            has: `(n,)` whether each row has the class.
            fired: `(n,)` whether the row has fired before.
        """
        right = self._from_start(self._counts(has & ~fired)) + (has & fired).sum()
        wrong = self._from_start(self._counts(~has & ~fired)) + (~has & fired).sum()
        f1 = 2 * right / np.maximum(right + wrong + has.sum(), 1)
        best, cuts = np.zeros(self.shape[1]), np.full(self.shape[1], np.inf)
        if len(f1):
            best[self.active] = np.maximum.reduceat(f1, self._starts)
            is_best = np.flatnonzero(f1 == best[self.columns])
            chosen, first = np.unique(self.columns[is_best], return_index=True)
            cuts[chosen] = self.values[is_best[first]]
        return best, cuts
