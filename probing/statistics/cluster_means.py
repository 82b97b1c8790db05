"""ClusterMeans: means of rows, and ratios of sums, with intervals from resampled clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.seeds import child_seed
from probing.statistics.bootstrap import Clusters, cluster_weights, replicates
from probing.statistics.clusters import bounded


class ClusterMeans:
    """Gives means of rows with 95 % intervals from resampled clusters.

    Attributes:
        count: number of clusters; with one there is no interval.
    """

    def __init__(self, groups: NDArray[np.int64], *, seed: int) -> None:
        self._codes = np.unique(groups, return_inverse=True)[1].reshape(-1)
        self._sizes = np.bincount(self._codes)
        self.count = len(self._sizes)
        self._clusters = Clusters.of_sizes(self._sizes)
        self._seed = child_seed(seed, "cluster means")
        self._weights = cluster_weights(self.count, seed=self._seed) if self.count > 1 else None

    def mean(
        self, values: NDArray[Any], unit: str, *, over: NDArray[Any] | None = None, least: float = 0.0
    ) -> tuple[float, float | None, float | None]:
        """Return mean, low and high of values `(N,)`, or of the ratio Σ values / Σ over; a fraction is cut to the range
        from `least` to 1.
        """
        given = np.asarray(values, np.float64)
        top = np.bincount(self._codes, given, self.count)
        bottom = self._sizes if over is None else np.bincount(self._codes, np.asarray(over, np.float64), self.count)
        value = float(top.sum() / max(bottom.sum(), 1e-300))
        if self._weights is None:
            return value, None, None
        samples = (self._weights @ top) / np.maximum(self._weights @ bottom, 1e-300)
        spread = replicates(samples[None, None], clusters=self._clusters, seed=self._seed)
        low, high = bounded(value, spread, unit=unit, clusters=self._clusters, least=least)
        return value, low, high
