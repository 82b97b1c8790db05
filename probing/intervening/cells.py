"""RowWeights: rows that are edited, their weights by stratum and pair of values, and means of responses over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.intervening.contrasts import Sides, sums_by

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_LEAST = 8


@dataclass(frozen=True, eq=False)
class RowWeights:
    """n edited rows of one fold.

    A stratum weighs as its share of all rows, within it all pairs (from, to) alike, and within these all rows.

    Attributes:
        sides: what each is changed from and to.
        shares: `(W,)` of the strata.
        n_classes: K; 0 for real values, where a stratum is one cell.
    """

    sides: Sides
    shares: Floats
    n_classes: int

    @cached_property
    def cells(self) -> Ints:
        """`(n,)` codes of (stratum, from, to)."""
        return self._code(self.sides.start, self.sides.goal)

    @cached_property
    def reverse(self) -> Ints:
        """`(n,)` codes of (stratum, to, from)."""
        return self._code(self.sides.goal, self.sides.start)

    def _code(self, first: NDArray[Any], second: NDArray[Any]) -> Ints:
        if not self.n_classes:
            return self.sides.strata
        return np.asarray((self.sides.strata * self.n_classes + first) * self.n_classes + second, np.int64)

    @cached_property
    def _grouped(self) -> tuple[Ints, Ints, Ints]:
        """Cells that have a row, `(n,)` which of them each row is in, and their rows."""
        counts = np.bincount(self.cells)
        found = np.flatnonzero(counts)
        return found, (np.cumsum(counts > 0) - 1)[self.cells], counts[found]

    @cached_property
    def weights(self) -> Floats:
        """`(n,)`, sum 1."""
        found, inverse, counts = self._grouped
        k = max(1, self.n_classes)
        stratum = found // (k * k) if self.n_classes else found
        pairs = np.bincount(stratum, minlength=len(self.shares))
        by_cell = self.shares[stratum] / pairs[stratum] / counts
        return np.asarray(by_cell[inverse] / by_cell[inverse].sum())

    def sample(self, most: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
        """About `most` of the rows, and their weights: a cell weighs as before, and keeps a few rows at least.

        Args:
            most: 0: all.
            rng: draws them.
        """
        if not 0 < most < len(self.cells):
            return np.arange(len(self.cells)), self.weights
        least = max(2, _LEAST // max(1, self.n_classes - 1))  # 8 or more of each class and stratum
        drawn = rng.permutation(len(self.cells))
        order = drawn[np.argsort(self.cells[drawn], kind="stable")]
        _, first, inverse, counts = np.unique(
            self.cells[order], return_index=True, return_inverse=True, return_counts=True
        )
        kept = np.minimum(counts, np.maximum(least, np.ceil(counts * most / len(order)))).astype(np.int64)
        chosen = np.arange(len(order)) - first[inverse] < kept[inverse]
        weights = self.weights[order] * (counts / kept)[inverse]
        return order[chosen], weights[chosen]

    def centred(self, x: Floats) -> Floats:
        """`(n,)` weighted deviations from the mean of the cell: influence values of Σ weights · x."""
        _, inverse, counts = self._grouped
        means = np.bincount(inverse, x) / counts
        spare = np.where(counts > 1, counts / np.maximum(counts - 1, 1), 1.0)  # degrees of freedom of the mean
        return np.asarray(self.weights * (x - means[inverse]) * np.sqrt(spare[inverse]))

    def responses(self, changes: Floats) -> Responses:
        """Mean changes `(n, V)` by cell."""
        return Responses(self, changes)


@dataclass(frozen=True, eq=False)
class Responses:
    """Mean changes by (stratum, from, to); of real values, the change by unit and stratum."""

    rows: RowWeights
    changes: Floats

    def expected(self, others: RowWeights) -> Floats:
        """`(n', V)` what rows of another fold are to change by; zeros where no row was changed so.

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
