"""Shares: how rows are spread over groups within cells, and what that leaves of degrees of freedom."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shares:
    """Share that each group has of each cell's rows.

    Attributes:
        cell, group, share: `(M,)` of every cell and group that meet.
        of_row: `(n,)` which of these a row is of.
        n_cells: cells, empty ones too.

    References:
        Carter, Schnepel and Steigerwald 2017, Asymptotic behavior of a t-test robust to cluster heterogeneity; Bell and
        McCaffrey 2002, Bias reduction in standard errors for linear regression with multi-stage samples; Pustejovsky
        and Tipton 2018, Small-sample methods for cluster-robust variance estimation.
    """

    cell: Ints
    group: Ints
    share: Floats
    of_row: Ints
    n_cells: int

    @classmethod
    def of(cls, cells: Ints, groups: Ints, n_cells: int) -> Shares:
        """Return the shares for `(n,)` codes of cells and groups."""
        n_groups = int(groups.max()) + 1
        keys, of_row, counts = np.unique(cells * n_groups + groups, return_inverse=True, return_counts=True)
        cell = keys // n_groups
        rows = np.bincount(cells, minlength=n_cells)
        return cls(cell, keys % n_groups, counts / rows[cell], of_row.reshape(-1), n_cells)

    @cached_property
    def squares(self) -> Floats:
        """Sum of squared shares Σ s² of each cell, `(cells,)`; 0 for empty cells."""
        return np.asarray(np.bincount(self.cell, self.share**2, self.n_cells), np.float64)

    @property
    def effective(self) -> Floats:
        """Effective number of groups of each cell that has rows: 1 / Σ s², their number where they are even."""
        found = self.squares[self.squares > 0]
        return np.asarray(1 / found)

    @cached_property
    def leverage(self) -> Floats:
        """Correction factors for influence values that were taken about their cell's mean, `(n,)`.

        With groups of shares s that have errors of their own, a group's deviation from the mean has the variance
        1 − 2s + Σs² of its own (of rows without anything in common: 1 − s); the smaller of the two is made up for.
        """
        own = np.minimum(1 - self.share, 1 - 2 * self.share + self.squares[self.cell])
        return np.asarray(1 / np.sqrt(np.maximum(own, 1e-6)))[self.of_row]

    def df(self, weights: Floats) -> float:
        """Return the degrees of freedom of Σ weight · mean over cells, of as many groups each as are effective there.

        Satterthwaite's over cells. (Over groups, by the fourth powers of their shares as in Bell and McCaffrey, errors
        of few large groups are overstated: `scripts/bench_verdicts.py corrections`.)

        Args:
            weights: `(cells,)`.
        """
        used = (self.squares > 0) & (weights > 0)
        own = np.maximum(1 / self.squares[used] - 1, 0.5)
        variance = weights[used] ** 2 * self.squares[used]
        by_cell = variance.sum() ** 2 / (variance**2 / own).sum()
        of_group = np.bincount(self.group, (weights / weights[used].sum())[self.cell] * self.share)
        return float(max(1.0, min(by_cell, 1 / (of_group**2).sum() - 1)))
