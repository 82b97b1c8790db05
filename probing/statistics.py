"""Cluster bootstrap, intervals that carry seeds and draws too, one-sided p, Holm. R resamples, S clusters.

Rows of one sentence (or document) are not independent, so whole clusters are resampled. One matrix of weights serves
every score of a split: task, controls, probes and sites are compared on the same resamples, paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
_DOUBLE_CELLS = 1 << 25


def cluster_weights(n_clusters: int, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[Any]:
    """`(R, S)` counts of how often each cluster is drawn; every row sums to S.

    float64, or float32 beyond 256 MiB: counts are whole numbers, exact in both.
    """
    dtype = np.float64 if resamples * n_clusters <= _DOUBLE_CELLS else np.float32
    weights = np.empty((resamples, n_clusters), dtype)
    random = np.random.default_rng(seed)
    for row in weights:
        row[:] = np.bincount(random.integers(0, n_clusters, n_clusters), minlength=n_clusters)
    return weights


def interval(samples: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of bootstrap samples; undefined samples (NaN) are left out.

    References:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, §13.3.
    """
    known = samples[np.isfinite(samples)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def unvaried_interval(
    value: float, n_clusters: int, *, least: float, most: float, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of a score that no resample changes, since every cluster gives the same: the bootstrap would say ±0.

    If a share π of all clusters deviates, S clusters without one have the probability (1 − π)^S; so π is at most
    q = 1 − ((1 − level) / 2)^(1/S), and a deviating cluster gives anything from `least` to `most`. For a fraction of 0
    or 1 this is the exact binomial interval on clusters.

    References:
        Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the binomial.
    """
    q = 1.0 - ((1 - level) / 2) ** (1 / n_clusters)
    return value - q * (value - least), value + q * (most - value)


def unvaried_p(gain: float, n_clusters: int, *, margin: float, least: float) -> float:
    """p of `gain ≤ margin` where every cluster gives the same gain: as `unvaried_interval`, (1 − π)^S.

    π is the share of clusters that, all of them at `least`, would bring the gain down to the margin.
    """
    if not gain > margin:
        return 1.0
    return float((1.0 - (gain - margin) / (gain - least)) ** n_clusters)


def replicates(samples: NDArray[np.float64], *, seed: int = 0) -> NDArray[np.float64]:
    """`(R,)` bootstrap replicates of the mean over draws and seeds, from samples `(draws, seeds, R)`.

    In replicate r the clusters are those of resample r; draws and seeds are drawn with replacement. The deviations
    of m draws (or seeds) are stretched by √(m / (m - 1)), since resampling m items shows only (m - 1)/m of their
    variance. With one draw or one seed that component is unknown and left out: the interval then speaks of that draw
    or seed alone. Where draws, not rows, make up all of the variation, a handful cannot show it: a 95 % interval then
    covers about 88 % with five draws, 83 % with three and 65 % with two.
    """
    overall: NDArray[np.float64] = samples.mean((0, 1))
    random = np.random.default_rng(seed)
    by_draw = _deviation(samples.mean(1) - overall, random)
    by_seed = _deviation(samples.mean(0) - overall, random)
    return overall + by_draw + by_seed


def _deviation(deviations: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """`(R,)` mean deviation of m items resampled anew in every replicate, from `(m, R)`."""
    m, resamples = deviations.shape
    if m < 2:
        return np.zeros(resamples)
    counts = random.multinomial(m, np.full(m, 1.0 / m), size=resamples)
    return np.asarray((counts.T * deviations).mean(0) * math.sqrt(m / (m - 1)))


def selectivity_interval(
    task: NDArray[np.float64], control: NDArray[np.float64], *, higher_is_better: bool = True, seed: int = 0
) -> tuple[float, float]:
    """Interval of task minus mean control score (the reverse where lower is better), carrying clusters, seeds, draws.

    Args:
        task: `(seeds, R)` scores of the task.
        control: `(draws, seeds, R)` scores of the control on the same resamples and seeds.
        higher_is_better: direction of the measure.
        seed: of the resampling of seeds and draws.
    """
    sign = 1.0 if higher_is_better else -1.0
    return interval(replicates(sign * (task[None] - control), seed=seed))


def one_sided_p(gain: float, samples: NDArray[np.float64], *, margin: float = 0.0) -> float:
    """p of `gain ≤ margin`, by the normal approximation with the bootstrap standard error.

    Not the share of samples below the margin: that cannot fall below 1/R, too coarse for adjustment over many tests.
    An undefined gain, or one whose error is unknown, shows nothing: p is 1.
    """
    known = samples[np.isfinite(samples)]
    if len(known) < 2 or not math.isfinite(gain):
        return 1.0
    error = float(known.std(ddof=1))
    if error == 0.0:
        return 0.0 if gain > margin else 1.0
    return 0.5 * math.erfc((gain - margin) / error / math.sqrt(2.0))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: controls the family-wise error whatever the dependence.

    References:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted
