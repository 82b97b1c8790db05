"""Dependence: variances of sums over rows that are dependent within groups, and within sets of exchanged rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dependence:
    """Describes the dependence among n rows: rows of one group depend on each other, and so do rows of one set that
    exchanged states.

    The influence of a single row counts with its group, that of an exchange with its set, which may contain rows of
    several groups. Sets and groups that share a group are dependent; the variance of a sum is the sum over all
    dependent products.

    Attributes:
        groups: `(n,)` codes of groups.
        sets: `(n,)` codes of sets, -1 for rows in none; None: no states were exchanged.
        pools: `(n,)` codes; the influence values of exchanges are centred within the rows of one code.

    References:
        Aronow, Samii and Assenova 2015, Cluster-robust variance estimation for dyadic data, eq. 2 (pairs; here sets).
    """

    groups: Ints
    sets: Ints | None = None
    pools: Ints | None = None

    @cached_property
    def n_groups(self) -> int:
        """Number of groups, G."""
        return int(self.groups.max()) + 1

    def error(self, own: Floats, exchanged: Floats | None = None) -> tuple[float, Floats]:
        """Return the standard error of a sum of influence values `(n,)`, and the contribution of each group `(G,)`.

        Args:
            own: influence values of single rows.
            exchanged: influence values of rows that exchanged states, which count with their set.
        """
        sums: Floats = np.bincount(self.groups, own, self.n_groups).astype(np.float64)
        if exchanged is None or self.sets is None:
            return math.sqrt(float(sums @ sums)), sums
        member = self._member
        if not member.shape[0]:
            return math.sqrt(float(sums @ sums)), sums
        inside = self.sets >= 0
        of_set = np.bincount(self.sets[inside], exchanged[inside], member.shape[0]) * self._leverage
        values = np.concatenate([of_set, sums])
        variance = float(values @ (self._dependent @ values))
        # The sum of products can fall below zero in small samples.
        floor = float(values @ values) / 2
        spread = of_set / np.sqrt(np.diff(member.indptr))
        return math.sqrt(max(variance, floor)), sums + member.T @ spread

    @cached_property
    def df(self) -> float:
        """Degrees of freedom for exchanges: the number of independent sets minus one in each pool, combined
        over pools.
        """
        if not len(self._density):
            return math.inf
        size, density = self._density.T
        variance = size**2 * density
        return float(max(1.0, variance.sum() ** 2 / (variance**2 / np.maximum(1 / density - 1, 0.5)).sum()))

    @property
    def _leverage(self) -> float:
        """Return the factors for deviations from a pool's mean.

        Two sets share a group with the chance `density`; by that share their variance is too small.
        """
        return 1 / math.sqrt(max(1e-6, 1 - float(self._density[:, 0] @ self._density[:, 1])))

    @cached_property
    def _density(self) -> Floats:
        """Share of the exchanged rows in each pool, and the chance that two of its sets are dependent, `(pools, 2)`."""
        if self.sets is None or self.pools is None or self.sets.max(initial=-1) < 0:
            return np.zeros((0, 2))
        inside = self.sets >= 0
        n_sets, pools = int(self.sets.max()) + 1, self.pools[inside]
        rows = csr_array((np.ones(len(pools)), (self.sets[inside], pools)), shape=(n_sets, int(pools.max()) + 1))
        size = np.asarray(rows.sum(0)).reshape(-1)
        among = self._dependent[:n_sets, :n_sets]
        both = np.asarray((rows * csr_array(among @ rows)).sum(0)).reshape(-1)
        used = size > 0
        return np.stack([size[used] / size.sum(), both[used] / size[used] ** 2], axis=1)

    @cached_property
    def _member(self) -> csr_array:
        """Matrix `(sets, G)` with 1 where a set has a row of the group."""
        assert self.sets is not None
        inside = np.flatnonzero(self.sets >= 0)
        n_sets = int(self.sets.max()) + 1
        keys = np.unique(self.sets[inside] * self.n_groups + self.groups[inside])
        ones = np.ones(len(keys))
        return csr_array((ones, (keys // self.n_groups, keys % self.n_groups)), shape=(n_sets, self.n_groups))

    @cached_property
    def _dependent(self) -> csr_array:
        """Matrix `(sets + G, sets + G)` with 1 where two share a group."""
        every = csr_array((np.ones(self.n_groups), (np.arange(self.n_groups),) * 2))
        member = vstack([self._member, every], format="csr")
        shared = csr_array(member @ member.T)
        shared.data[:] = 1.0
        return shared
