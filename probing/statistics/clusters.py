"""Resampler: the clusters of a split and their bootstrap weights, which all scores of the split share. ClusterMeans and
mean_intervals: means of rows, and ratios of sums, with intervals from resampled clusters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import DegenerateDesign
from probing.labels import Labels
from probing.seeds import child_seed
from probing.statistics.bootstrap import (
    RESAMPLES,
    Bracket,
    Clusters,
    Replicates,
    cluster_weights,
    exponential_weights,
    replicates,
    unvaried_interval,
)

EVALUATED = ("dev", "test")
NEW = "_new"  # after the name of a split: those of its rows whose input train has not
FRACTION = "fraction"  # the unit of scores from 0 to 1
RHO = "rho"  # the unit of rank correlations


@dataclass(frozen=True)
class Resampler:
    """Holds the rows of one split and the weights of their clusters in every bootstrap resample.

    Attributes:
        split: `dev` or `test`; or `dev_new` or `test_new`, only the rows whose input is not in train.
        rows: `(N,)` indices into the labels.
        within: `(N,)` their indices among the rows of the split.
        groups: `(N,)` cluster of each row, 0 … S-1.
        weights: `(R, S)` how often each cluster is drawn in each resample.
        seed: seed of the resampling of seeds and draws.
        n: number of scored items: rows, or choices if rows are alternatives.
        fewest: of the classes of the task, the smallest effective number of clusters with rows of it; infinite for
            other labels.
    """

    split: str
    rows: NDArray[np.int64]
    within: NDArray[np.int64]
    groups: NDArray[np.int64]
    weights: NDArray[Any]
    seed: int
    n: int
    fewest: float = math.inf

    @property
    def base(self) -> str:
        """Name of the split, without the suffix `_new`: `dev` or `test`."""
        return self.split.removesuffix(NEW)

    @cached_property
    def clusters(self) -> Clusters:
        """Description of the clusters: their number, and the number of equal clusters that would be as informative."""
        return Clusters.of_sizes(np.bincount(self.groups))

    @cached_property
    def smooth(self) -> NDArray[Any]:
        """Weights `(R, S)` of resamples in which every cluster has some: exponential deviates."""
        count = self.weights.shape[1]
        return exponential_weights(count, resamples=len(self.weights), seed=child_seed(self.seed, "exponential"))

    @classmethod
    def of(cls, labels: Labels, split: str, *, resamples: int, root_seed: int) -> Resampler:
        """Number the clusters of `split`, draw their weights, and return the resampler.

        Raises:
            DegenerateDesign: the split has fewer than two clusters.
        """
        base = split.removesuffix(NEW)
        within = np.arange(len(labels.rows(base)))
        if split != base and labels.fresh is not None:
            within = np.flatnonzero(labels.fresh[labels.rows(base)])
        rows = labels.rows(base)[within]
        clusters, groups = np.unique(labels.groups[rows], return_inverse=True)
        if len(clusters) < 2:
            why = f" ({labels.unit_reason})" if labels.unit_reason else ""
            step = (
                "use more text, or a model whose tokenizer knows its words: unknown ones are all one input to it"
                if len(rows) > 1
                else f"label more rows of {base}, or of a file that is split at random take another --split-seed"
            )
            raise DegenerateDesign(
                f"no interval can be given on {split}: too few {labels.unit}s to resample{why}",
                needed="at least two with different inputs",
                found=f"{len(clusters)}, of {len(rows):,} rows",
                where=f"task {labels.task}",
                next_step="use resample_by=sentence or more text" if labels.unit != "sentence" else step,
            )
        seed = child_seed(root_seed, "bootstrap", base)
        weights = cluster_weights(len(clusters), resamples=resamples, seed=seed)
        n = len(rows) if labels.choice is None else len(np.unique(labels.choice[rows]))
        groups = groups.reshape(-1)
        fewest = _fewest(labels.y[rows], groups) if labels.kind != "real" else math.inf
        return cls(split, rows, within, groups, weights, child_seed(seed, "nested"), n, fewest)

    def by_origin(self, labels: Labels) -> Resampler:
        """Return the resampler whose weight of each row is that of the cluster which its label comes from.

        Clusters outside these rows get resamples of their own.

        Args:
            labels: labels of a control that permutes rows, with `origin`.
        """
        assert labels.origin is not None  # asked for permuted labels only
        known, codes = np.unique(labels.groups[self.rows]), labels.origin[self.rows]
        groups = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        outside = known[groups] != codes
        if not outside.any():
            return replace(self, groups=groups)
        others, places = np.unique(codes[outside], return_inverse=True)
        groups[outside] = len(known) + places.reshape(-1)
        seed = child_seed(self.seed, "origin")
        more = cluster_weights(len(others), resamples=len(self.weights), seed=seed)
        return replace(self, groups=groups, weights=np.hstack([self.weights, more.astype(self.weights.dtype)]))

    def bounds(
        self, value: float, samples: NDArray[np.float64], *, unit: str, least: float = 0.0
    ) -> tuple[float, float]:
        """Return the ends of the 95 % interval of a score or difference, from its values `(draws, seeds, R)` on the R
        resamples.

        For a fraction the interval is cut to the range from `least` (-1 for differences) to 1. If the score is the same
        in every resample, a fraction gets the interval of `unvaried_interval`, so its width is never 0.
        """
        found = replicates(samples, clusters=self.clusters, seed=self.seed)
        return bounded(value, found, unit=unit, clusters=self.clusters, least=least)


def _fewest(y: NDArray[Any], groups: NDArray[np.int64]) -> float:
    """Return the effective number of clusters of the class, or the label, that has the smallest."""
    classes = [y == code for code in np.unique(y)] if y.ndim == 1 else [column == 1 for column in y.T if column.any()]
    sizes = [np.bincount(groups[has]) for has in classes]
    return min((Clusters.of_sizes(of[of > 0]).effective for of in sizes), default=math.inf)


def bounded(
    value: float, found: Replicates | Bracket, *, unit: str, clusters: Clusters, least: float
) -> tuple[float, float]:
    """Return the ends of the interval of replicates of a score. For a fraction they are cut to the range from `least`
    (-1 for differences) to 1, and the width is never 0, unless the ends allow for what was not seen (`Bracket`).
    """
    bounds = found.interval
    if isinstance(found, Bracket):
        bounds = min(bounds[0], value), max(bounds[1], value)
    elif unit == FRACTION and is_unvaried(bounds):
        bounds = unvaried_interval(value, clusters.effective, least=least, most=1.0)
    elif is_certain_rank(value, unit, bounds):
        bounds = unvaried_interval(value, clusters.effective, least=-1.0, most=1.0)
    return bounds if unit != FRACTION else (max(least, bounds[0]), min(1.0, bounds[1]))


def is_certain_rank(value: float, unit: str, bounds: tuple[float, float]) -> bool:
    """Return whether every resample has the same rank correlation, other than that of a constant, which is 0."""
    return unit == RHO and value != 0.0 and is_unvaried(bounds)


def is_unvaried(bounds: tuple[float, float]) -> bool:
    """Return whether an interval has width 0 (up to 1e-12), as when the score is the same in every resample."""
    return bounds[1] - bounds[0] <= 1e-12


def evaluated(labels: Labels, draws: Iterable[Labels], *, resamples: int, root_seed: int) -> dict[str, Resampler]:
    """Return the resamplers of dev and test by name and, if some of their inputs occur in train, also of the rows whose
    input does not (`dev_new`, `test_new`).

    No such resampler is made if those rows are in a single cluster, or all have one label (in the task or in a control
    draw).

    Raises:
        DegenerateDesign: dev or test has fewer than two clusters.
    """
    found = {s: Resampler.of(labels, s, resamples=resamples, root_seed=root_seed) for s in EVALUATED}
    for split in EVALUATED if labels.fresh is not None else ():
        rows = labels.rows(split)
        new = rows[labels.fresh[rows]] if labels.fresh is not None else rows
        varied = all(len(np.unique(one.y[new], axis=0)) > 1 for one in (labels, *draws))
        if len(new) < len(rows) and varied and len(np.unique(labels.groups[new])) > 1:
            found[split + NEW] = Resampler.of(labels, split + NEW, resamples=resamples, root_seed=root_seed)
    return found


def mean_intervals(
    values: NDArray[np.float64], groups: NDArray[Any], *, seed: int, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the means of K columns over rows and their 95 % intervals, `(K,)` and `(K, 2)`, resampled by cluster.

    A column's mean is over the rows where it is not NaN; its interval is NaN if fewer than two clusters have such a
    row.

    Args:
        values: `(N, K)` numbers.
        groups: `(N,)` cluster of each row.
        seed: seed of the resampling.
        resamples: number of resamples.
    """
    names, codes = np.unique(groups, return_inverse=True)
    is_known = np.isfinite(values)
    sums, counts = np.zeros((2, len(names), values.shape[1]))
    np.add.at(sums, codes.reshape(-1), np.where(is_known, values, 0.0))
    np.add.at(counts, codes.reshape(-1), is_known)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums.sum(0) / counts.sum(0)
        bounds = np.full((values.shape[1], 2), np.nan)
        if len(names) < 2:
            return means, bounds
        weights = cluster_weights(len(names), resamples=resamples, seed=seed)
        samples = (weights @ sums) / (weights @ counts)
    for k in range(values.shape[1]):
        sizes = counts[counts[:, k] > 0, k]
        if len(sizes) > 1:
            of_column = replicates(samples[None, None, :, k], clusters=Clusters.of_sizes(sizes), seed=seed)
            bounds[k] = of_column.interval
    return means, bounds


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
