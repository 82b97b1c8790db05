"""RowWeights: rows that are edited, their weights by stratum and pair of values, and means of responses over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.use.contrasts import Sides, sums_by

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_LEAST = 8


@dataclass(frozen=True, eq=False)
class RowWeights:
    """Weights of n edited rows of one fold.

    A stratum weighs as its share of all rows; within it a pair (from, to) as `pair_shares` say, and within that all
    rows alike; without these, all rows of a stratum alike.

    Attributes:
        sides: what each is changed from and to.
        shares: `(W,)` of the strata.
        n_classes: K; 0 for real values, where a stratum is one cell.
        pair_shares: `(W, K, K)`; None: a pair weighs as often as it occurs.
    """

    sides: Sides
    shares: Floats
    n_classes: int
    pair_shares: Floats | None = None

    @cached_property
    def cells(self) -> Ints:
        """Codes of (stratum, from, to), `(n,)`."""
        return self._code(self.sides.start, self.sides.goal)

    @cached_property
    def reverse(self) -> Ints:
        """Codes of (stratum, to, from), `(n,)`."""
        return self._code(self.sides.goal, self.sides.start)

    def _code(self, first: NDArray[Any], second: NDArray[Any]) -> Ints:
        if not self.n_classes:
            return self.sides.strata
        return np.asarray((self.sides.strata * self.n_classes + first) * self.n_classes + second, np.int64)

    @cached_property
    def _grouped(self) -> tuple[Ints, Ints, Ints]:
        """Cells that have a row, the index among them of each row's cell `(n,)`, and their numbers of rows."""
        counts = np.bincount(self.cells)
        found = np.flatnonzero(counts)
        return found, (np.cumsum(counts > 0) - 1)[self.cells], counts[found]

    @cached_property
    def weights(self) -> Floats:
        """Weights of the rows, `(n,)`, with sum 1."""
        found, inverse, counts = self._grouped
        stratum = found // (self.n_classes**2) if self.n_classes else found
        own = counts.astype(np.float64) if self.pair_shares is None else self.pair_shares.reshape(-1)[found]
        of_stratum = np.bincount(stratum, own, len(self.shares))
        by_cell = self.shares[stratum] * own / of_stratum[stratum] / counts
        return np.asarray(by_cell[inverse] / by_cell[inverse].sum())

    def sample(self, most: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
        """Return about `most` of the rows, and their weights: a class of a stratum weighs as before, and keeps a few
        rows.

        Args:
            most: 0: all.
            rng: draws them.
        """
        if not 0 < most < len(self.cells):
            return np.arange(len(self.cells)), self.weights
        drawn = rng.permutation(len(self.cells))
        own = self.cells // max(1, self.n_classes)  # stratum and class; of real values the stratum
        order = drawn[np.argsort(own[drawn], kind="stable")]
        _, first, inverse, counts = np.unique(own[order], return_index=True, return_inverse=True, return_counts=True)
        kept = np.minimum(counts, np.maximum(_LEAST, np.ceil(counts * most / len(order)))).astype(np.int64)
        chosen = np.arange(len(order)) - first[inverse] < kept[inverse]
        of_class = np.bincount(inverse, self.weights[order])
        weights = self.weights[order][chosen]
        weights *= (of_class / np.bincount(inverse[chosen], weights, len(of_class)))[inverse[chosen]]
        return order[chosen], weights

    def centred(self, x: Floats) -> Floats:
        """Return the weighted deviations from the mean of the cell, `(n,)`: influence values of Σ weights · x.

        Cells of few rows are taken together, stratum by stratum: about the mean of its one row a row would not deviate,
        and its error would not be counted. A row alone counts whole. Where pairs weigh as often as they occur, a
        stratum is one cell: rows that exchange states are in few independent sets.

        References:
            Wolter 2007, Introduction to Variance Estimation, §2.5 (collapsed strata).
        """
        found, inverse, counts = self._grouped
        if self.n_classes:
            stratum = found // self.n_classes**2
            few = (counts < _LEAST) | (self.pair_shares is None)
            pool = np.where(few, found.max() + 1 + stratum, found)
            inverse = np.unique(pool, return_inverse=True)[1].reshape(-1)[inverse]
            counts = np.bincount(inverse)
        means = np.where(counts > 1, np.bincount(inverse, x) / counts, 0.0)
        return np.asarray(self.weights * (x - means[inverse]))

    @cached_property
    def pooled(self) -> RowWeights:
        """The same rows, with all strata pooled."""
        one = Sides(np.zeros_like(self.sides.strata), self.sides.start, self.sides.goal)
        return RowWeights(one, np.ones(1), self.n_classes)

    def responses(self, changes: Floats) -> Responses:
        """Return the mean changes by cell, from changes `(n, V)`."""
        return Responses(self, changes)


@dataclass(frozen=True, eq=False)
class Responses:
    """Mean changes by (stratum, from, to); of real values, the change by unit and stratum."""

    rows: RowWeights
    changes: Floats

    def expected(self, others: RowWeights) -> Floats:
        """Return the changes that rows of another fold should show, `(n', V)`; zeros where no row was changed so.

        Half the difference of the changes from v to u and from u to v: what a shift does whatever its sign, as the
        norm that a longer state is divided by, is no effect of the property.
        """
        if self.rows.n_classes:
            n = 1 + int(max(*(rows.max() for rows in (self.rows.cells, others.cells, others.reverse))))
            counts = np.bincount(self.rows.cells, minlength=n)
            means = sums_by(self.rows.cells, self.changes, n) / np.maximum(counts, 1)[:, None]
            return np.asarray((means[others.cells] - means[others.reverse]) / 2)
        sides, n = self.rows.sides, 1 + int(max(self.rows.sides.strata.max(), others.sides.strata.max()))
        step = sides.goal - sides.start
        spread = np.bincount(sides.strata, step**2, n)
        slope = sums_by(sides.strata, step[:, None] * self.changes, n) / np.where(spread > 0, spread, np.inf)[:, None]
        return np.asarray(slope[others.sides.strata] * (others.sides.goal - others.sides.start)[:, None])
