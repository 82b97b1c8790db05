"""Cluster bootstrap: p values, and intervals that also cover seeds and draws. R resamples, S clusters.

Rows of one sentence (or document) are not independent, so whole clusters are resampled. The same matrix of weights
serves every score of a split, so task, controls, probes and sites are compared in pairs on the same resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # its parts load when first used, so that commands without statistics start faster
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
ALPHA = 0.025  # one-sided, as the lower end of a 95 % interval
POWER = 0.8
_DOUBLE_CELLS = 1 << 25
_DRAWN_AT_ONCE = 1 << 18  # draws of clusters, which fit in a cache
_TAIL = 0.01
MANY = 1e9  # degrees of freedom at which t is normal to all digits


@dataclass(frozen=True)
class Replicates:
    """Holds bootstrap replicates of a score, `(R,)`, and the degrees of freedom of their spread."""

    samples: NDArray[np.float64]
    df: float = math.inf

    @property
    def error(self) -> float:
        """Standard error; NaN if fewer than two replicates are defined."""
        return _error(self.samples)

    @property
    def interval(self) -> tuple[float, float]:
        """Interval at 95 %."""
        return interval(self.samples, df=self.df)


@dataclass(frozen=True)
class Clusters:
    """Describes the clusters of a resampling: their number, and the number of equal clusters that would be as
    informative.

    Attributes:
        count: number of clusters S.
        effective: effective number, (Σ n)² / Σ n² over their numbers of rows n; S if all are equal.
        df: degrees of freedom of the variance estimated from them.
        inflation: factor by which that variance is too small on average: S / (S − 1) if all are equal.
    """

    count: int
    effective: float
    df: float
    inflation: float

    @classmethod
    def alike(cls, count: int) -> Clusters:
        """Return the description of `count` clusters of equal size."""
        return cls(count, float(count), max(1.0, count - 1.0), count / max(1, count - 1))

    @classmethod
    def weighted(cls, count: int) -> Clusters:
        """Return the description of clusters whose resampled weights already say how uncertain few of them are."""
        return cls(count, float(count), MANY, 1.0)

    @classmethod
    def of_sizes(cls, sizes: NDArray[Any]) -> Clusters:
        """Return the description of clusters with the given numbers of rows, if the rows of a cluster agree completely
        (the worst case).

        With w = n / Σ n, a mean is Σ w u of independent cluster means u, and its variance is σ² Σ w². Its estimate from
        residuals is the quadratic form u'Au with A = (I − 1w')' diag(w²) (I − 1w'), whose mean is σ² tr A, with (tr A)²
        / tr A² degrees of freedom by Satterthwaite's approximation.

        References:
            Bell and McCaffrey 2002, Bias reduction in standard errors for linear regression with multi-stage samples,
            Survey Methodology 28(2). Carter, Schnepel and Steigerwald 2017, Asymptotic behavior of a t-test robust to
            cluster heterogeneity, Review of Economics and Statistics 99(4).
        """
        w = np.asarray(sizes, dtype=np.float64) / np.sum(sizes)
        s, cubes, d = float(w @ w), float((w**3).sum()), float((w**4).sum())
        trace = s - 2.0 * cubes + s * s
        if trace <= 1e-12:
            return cls(len(w), 1.0 / s, 1.0, 1.0)
        rest = 2.0 * s * d + 2.0 * cubes**2 - 4.0 * s * s * cubes + s**4
        square = d + 2.0 * float((w**2 * (s * w**2 - 2.0 * w**3)).sum()) + rest
        return cls(len(w), 1.0 / s, max(1.0, trace * trace / square), s / trace)


@dataclass(frozen=True)
class Bracket:
    """Holds replicates of the lowest and of the highest values that a score, or a difference, can be given.

    Attributes:
        lowest: replicates for the lower end.
        highest: replicates for the upper end.
    """

    lowest: Replicates
    highest: Replicates

    @property
    def interval(self) -> tuple[float, float]:
        """Interval at 95 %."""
        return self.lowest.interval[0], self.highest.interval[1]

    @property
    def df(self) -> float:
        """Degrees of freedom of the lower end, from which p values are made."""
        return self.lowest.df

    def turned(self) -> Bracket:
        """Return the bracket of the difference with the other sign."""
        return Bracket(*(replace(end, samples=-end.samples) for end in (self.highest, self.lowest)))

    def p(self, margin: float) -> float:
        """Return the one-sided p value of a difference of at most `margin`, which agrees with the interval."""
        return percentile_p(self.lowest, margin=margin)


def _error(samples: NDArray[np.float64]) -> float:
    known = samples[np.isfinite(samples)]
    return float(known.std(ddof=1)) if len(known) > 1 else math.nan


def cluster_weights(n_clusters: int, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[Any]:
    """Draw the bootstrap resamples: return how often each cluster is drawn in each, `(R, S)`; every row sums to S.

    They are float64, or float32 beyond 256 MiB; counts are exact in both.
    """
    dtype = np.float64 if resamples * n_clusters <= _DOUBLE_CELLS else np.float32
    weights = np.empty((resamples, n_clusters), dtype)
    random = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // max(1, n_clusters))
    for low in range(0, resamples, step):
        rows = weights[low : low + step]
        drawn = random.integers(0, n_clusters, rows.shape) + n_clusters * np.arange(len(rows))[:, None]
        rows[:] = np.bincount(drawn.ravel(), minlength=rows.size).reshape(rows.shape)
    return weights


def exponential_weights(n_clusters: int, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[Any]:
    """Draw the weights of Rubin's Bayesian bootstrap, `(R, S)`, not scaled to a sum: exponential deviates, so that no
    cluster is ever left out. They are float64, or float32 beyond 256 MiB.
    """
    dtype = np.float64 if resamples * n_clusters <= _DOUBLE_CELLS else np.float32
    return np.random.default_rng(seed).standard_exponential((resamples, n_clusters), dtype=dtype)


def interval(samples: NDArray[np.float64], *, df: float = math.inf, level: float = LEVEL) -> tuple[float, float]:
    """Return the expanded percentile interval of bootstrap samples; undefined samples (NaN) are left out.

    The distances of the percentiles from the median are stretched by t/z, the ratio of the quantiles of Student's t
    with `df` degrees of freedom and of the normal distribution, since a spread estimated from few draws, seeds or
    clusters is itself uncertain.

    References:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, §13.3. Hesterberg 2015, What teachers should know
        about the bootstrap, The American Statistician 69(4) (expanded percentile interval).
    """
    known = samples[np.isfinite(samples)]
    if not len(known):
        return math.nan, math.nan
    low, middle, high = np.quantile(known, [(1 - level) / 2, 0.5, (1 + level) / 2])
    tail = (1 + level) / 2
    stretch = _t_quantile(tail, df) / scipy.special.ndtri(tail)
    return float(middle - stretch * (middle - low)), float(middle + stretch * (high - middle))


def _t_quantile(p: float, df: float) -> float:
    return float(scipy.special.stdtrit(min(df, MANY), p))


def unvaried_interval(
    value: float, n_clusters: float, *, least: float, most: float, level: float = LEVEL
) -> tuple[float, float]:
    """Return the interval of a score that is the same in every resample, because every cluster has the same score; a
    bootstrap interval would have width 0.

    If a share π of all clusters deviates, the probability that none of S clusters does is (1 − π)^S; so π is at most q
    = 1 − ((1 − level) / 2)^(1/S), and a deviating cluster may score anything from `least` to `most`. For a fraction of
    0 or 1 this is the exact binomial interval on clusters.

    References:
        Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the binomial.
    """
    q = 1.0 - ((1 - level) / 2) ** (1 / n_clusters)
    return value - q * (value - least), value + q * (most - value)


def unvaried_p(gain: float, n_clusters: float, *, margin: float, least: float) -> float:
    """Return the p value of `gain ≤ margin` if every cluster has the same gain: (1 − π)^S, as in `unvaried_interval`.

    π is the share of clusters with the gain `least` that would lower the mean gain to the margin.
    """
    if not gain > margin:
        return 1.0
    return float((1.0 - (gain - margin) / (gain - least)) ** n_clusters)


def replicates(samples: NDArray[np.float64], *, clusters: Clusters | int, seed: int = 0) -> Replicates:
    """Return replicates of the mean over draws and seeds, from scores `(draws, seeds, R)` on R resamples of the
    clusters.

    The error of the mean over m draws and k seeds has two parts. The first,

        B = (MS_draws + MS_seeds − MS_rest) / (m k),

    from the mean squares of a two-way table of the scores, contains the variance of draws, of seeds, and of rows as far
    as it differs between draws. The rest is the variance of rows that all draws and seeds have in common: C = c ·
    (bootstrap variance of the mean − B of the bootstrap deviations), with c = S/(S − 1), or the inflation for uneven
    clusters (`Clusters`). Replicates are the bootstrap ones scaled to variance C, plus a normal deviate of variance B.
    The quantile of t used for them is q² = z² + Σ r^(3/2) (t² − z²), with r each part's share of the variance and t the
    quantile for its degrees of freedom (those of the clusters, m − 1 and k − 1). It is exact if there is only one part.
    For a mixture of normal parts the coverage is 95 to 96.5 % with three draws, whatever the shares, and never below
    94.5 %. (With r², Welch's first-order term, by 93 to 96.5 %, and intervals of R² over three seeds fall below 92 %;
    with the mean of the quantiles, Cochran's, by up to 98 %.) With one draw or one seed that component is unknown and
    left out; the interval is then for that draw or seed alone.

    References:
        Welch 1947, The generalization of Student's problem when several different population variances are involved,
        Biometrika 34(1/2).
    """
    known_as = Clusters.alike(clusters) if isinstance(clusters, int) else clusters
    overall: NDArray[np.float64] = samples.mean((0, 1))
    known = np.isfinite(overall)
    if not known.any():
        return Replicates(overall)
    centres = samples[..., known].mean(-1, keepdims=True)
    centre = float(centres.mean())
    between, parts = _between(centres)
    by_rows = max(0.0, float(overall[known].var()))
    own, _ = _between(samples[..., known] - centres)
    common = max(0.0, by_rows - float(own.mean())) * known_as.inflation
    scale = math.sqrt(common / by_rows) if by_rows > 0 else 1.0
    noise = np.random.default_rng(seed).standard_normal(len(overall)) * math.sqrt(float(between[0]))
    df = _freedom([(common, known_as.df), *parts], common + float(between[0]))
    return Replicates(centre + scale * (overall - centre) + noise, df)


def _between(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[tuple[float, float]]]:
    """Return B `(…)` of tables `(m, k, …)`, and the mean squares over m k, averaged, each with its degrees of
    freedom.
    """
    m, k = table.shape[:2]
    draws, seeds = table.mean(1), table.mean(0)
    mean = draws.mean(0)
    of_draws = ((draws - mean) ** 2).sum(0) / (m * (m - 1)) if m > 1 else np.zeros_like(mean)
    of_seeds = ((seeds - mean) ** 2).sum(0) / (k * (k - 1)) if k > 1 else np.zeros_like(mean)
    parts = [(float(of_draws.mean()), m - 1), (float(of_seeds.mean()), k - 1)]
    if min(m, k) == 1:
        return of_draws + of_seeds, parts
    rest = ((table - draws[:, None] - seeds[None] + mean) ** 2).sum((0, 1)) / (m * k * (m - 1) * (k - 1))
    larger, smaller = np.maximum(of_draws, of_seeds), np.minimum(of_draws, of_seeds)
    return larger + np.maximum(0.0, smaller - rest), [*parts, (float(rest.mean()), (m - 1) * (k - 1))]


def _freedom(parts: Sequence[tuple[float, float]], total: float) -> float:
    """Return the degrees of freedom at which the 97.5 % quantile of t is that of a sum of these parts of a variance."""
    known = [(part, df) for part, df in parts if part > 0 and df > 0]
    if not known:
        return math.inf
    z = float(scipy.special.ndtri((1 + LEVEL) / 2))
    square = z * z + sum((part / total) ** 1.5 * (_t_quantile((1 + LEVEL) / 2, df) ** 2 - z * z) for part, df in known)
    quantile = math.sqrt(square)
    # The inverse of t in its degrees of freedom is not defined at the normal limit.
    few = min(df for _, df in known)
    if len(known) == 1:
        return float(few)
    return float(np.clip(scipy.special.stdtridf((1 + LEVEL) / 2, quantile), few, max(df for _, df in known)))


def gained(
    task: NDArray[np.float64],
    other: NDArray[np.float64],
    *,
    clusters: Clusters | int,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Replicates:
    """Return paired replicates of the gain of a task over a control or a baseline, resampled over clusters, seeds and
    draws.

    Args:
        task: `(seeds, R)` scores of the task.
        other: scores of the control or baseline, `(draws, seeds, R)` or `(seeds, R)`, on the same resamples and seeds.
        clusters: description of the clusters.
        higher_is_better: direction of the measure; the gain is positive where the task is better.
        seed: seed of the normal deviates that stand for seeds and draws.
    """
    sign = 1.0 if higher_is_better else -1.0
    difference = sign * (task - other)
    return replicates(difference if difference.ndim == 3 else difference[None], clusters=clusters, seed=seed)


def one_sided_p(gain: float, samples: NDArray[np.float64], *, margin: float = 0.0, df: float = math.inf) -> float:
    """Return the one-sided p value of `gain ≤ margin`, from Student's t with the bootstrap standard error.

    The share of samples below the margin is not used: it cannot be smaller than 1/R, too coarse for adjustment over
    many tests. If the gain or its error is undefined, p is 1.
    """
    error = _error(samples)
    if not (math.isfinite(error) and math.isfinite(gain)):
        return 1.0
    if error == 0.0:
        return 0.0 if gain > margin else 1.0
    return float(scipy.special.stdtr(min(df, MANY), (margin - gain) / error))


def percentile_p(samples: Replicates, *, margin: float) -> float:
    """Return the one-sided p value that agrees with the interval of replicates: it is below 0.025 if, and only if, the
    lower end lies above the margin.

    It is the share of replicates below the margin. Below 1 %, where these are too few to tell, the logarithm of p falls
    along the line through the quantiles 1 % and 10 %, which is never too small for a log-concave distribution.
    """
    known = np.sort(samples.samples[np.isfinite(samples.samples)])
    if not len(known) or not math.isfinite(margin):
        return 1.0
    low, middle, high = np.quantile(known, [_TAIL, 0.5, 0.1])
    tail = (1 + LEVEL) / 2
    stretch = _t_quantile(tail, samples.df) / float(scipy.special.ndtri(tail))
    at = middle - (middle - margin) / stretch
    if at >= known[-1]:
        return 1.0
    if at >= low:
        return float(np.interp(at, known, np.linspace(0.0, 1.0, len(known))))
    if high <= low:
        return _TAIL
    return float(_TAIL * math.exp(-math.log(0.1 / _TAIL) * (low - at) / (high - low)))


def two_sided_p(difference: float, samples: NDArray[np.float64], *, df: float = math.inf) -> float:
    """Return the two-sided p value of no difference, by the same approximation as `one_sided_p`."""
    if not math.isfinite(difference):
        return 1.0
    return min(1.0, 2.0 * one_sided_p(abs(difference), samples, df=df))


def detectable(error: float, df: float, *, margin: float = 0.0, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the smallest true difference that would be shown to exceed `margin` with probability `power`:

        margin + (t(1 − alpha, df) + z(power)) · error

    Args:
        error: standard error of the difference.
        df: degrees of freedom of that error.
        margin: value that has to be exceeded.
        alpha: one-sided level of a single test, after adjustment.
        power: probability of detecting a true difference of that size.

    References:
        Bloom 1995, Minimum detectable effects, Evaluation Review 19(5).
    """
    return margin + (_t_quantile(1.0 - alpha, df) + float(scipy.special.ndtri(power))) * error


def possible(least: float, largest: float | None) -> float | None:
    """Return the smallest difference that would be shown, `least`; None if it is not below the largest that there can
    be, so that none could have been shown.
    """
    is_possible = math.isfinite(least) and (largest is None or least <= largest)
    return least if is_possible else None


def half_width_error(low: float, high: float, *, level: float = LEVEL) -> float:
    """Return the standard error of a normal distribution whose interval at `level` is as wide as (`low`, `high`)."""
    return float((high - low) / 2 / scipy.special.ndtri((1 + level) / 2))
