"""Resampler: the clusters of a split and their weights in every bootstrap resample, shared by all that is compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.design import Labels
from probing.errors import DegenerateDesign
from probing.seeds import child_seed
from probing.statistics import Replicates, cluster_weights, replicates, unvaried_interval

EVALUATED = ("dev", "test")
FRACTION = "fraction"  # the unit of scores from 0 to 1


@dataclass(frozen=True)
class Resampler:
    """The rows of one split and the weights of their clusters in every resample.

    Attributes:
        split: `dev` or `test`.
        rows: `(N,)` indices into the labels.
        groups: `(N,)` cluster of each row, 0 … S-1.
        weights: `(R, S)`.
        seed: of the resampling of seeds and draws.
        n: what is counted as scored: rows, or choices where rows are alternatives.
    """

    split: str
    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    weights: NDArray[Any]
    seed: int
    n: int

    @classmethod
    def of(cls, labels: Labels, split: str, *, resamples: int, root_seed: int) -> Resampler:
        """Number the clusters of `split` and draw their weights.

        Raises:
            DegenerateDesign: fewer than two clusters.
        """
        rows = labels.rows(split)
        clusters, groups = np.unique(labels.groups[rows], return_inverse=True)
        if len(clusters) < 2:
            raise DegenerateDesign(
                f"no interval can be given on {split}: too few clusters to resample", needed="at least two",
                found=str(len(clusters)), where=f"task {labels.task}", next_step="use cluster=sentence or more text",
            )  # fmt: skip
        seed = child_seed(root_seed, "bootstrap", split)
        weights = cluster_weights(len(clusters), resamples=resamples, seed=seed)
        n = len(rows) if labels.choice is None else len(np.unique(labels.choice[rows]))
        return cls(split, rows, groups.reshape(-1), weights, child_seed(seed, "nested"), n)

    def bounds(
        self, value: float, samples: NDArray[np.float64], *, unit: str, least: float = 0.0
    ) -> tuple[float, float]:
        """The 95 % interval of a score or difference from its samples `(draws, seeds, R)` on these resamples.

        A fraction's lies from `least` (of differences: -1) to 1, and never has no width.
        """
        clusters = self.weights.shape[1]
        found = replicates(samples, clusters=clusters, seed=self.seed)
        return bounded(value, found, unit=unit, clusters=clusters, least=least)


def bounded(value: float, found: Replicates, *, unit: str, clusters: int, least: float) -> tuple[float, float]:
    """An interval. A fraction's lies from `least` (of differences: -1) to 1, and never has no width."""
    bounds = found.interval
    if unit == FRACTION and is_unvaried(bounds):
        bounds = unvaried_interval(value, clusters, least=least, most=1.0)
    return bounds if unit != FRACTION else (max(least, bounds[0]), min(1.0, bounds[1]))


def is_unvaried(bounds: tuple[float, float]) -> bool:
    """Whether no resample changed the score."""
    return bounds[1] - bounds[0] <= 1e-12
