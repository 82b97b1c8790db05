"""Standard errors, intervals and p values of effects, from the influence values of their rows.

Rows of one group count together. Where states were exchanged the unit is the reciprocal pair: what two pairs share is a
group (dyadic clusters).

References:
    Aronow, Samii and Assenova 2015, Cluster-robust variance estimation for dyadic data, eq. 2; Fieller 1954, Some
    problems in interval estimation; Schuirmann 1987 (two one-sided tests).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

from probing.intervening.effects import Tally
from probing.intervening.experiment import FOLDS, Experiment

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
POWER = 0.80


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number, its standard error, and what each group adds to it.

    Attributes:
        value, error: in the number's own unit.
        df: degrees of freedom.
        by_group: `(G,)` for the multiplier bootstrap; its sum of squares is error² where no pairs cross groups.
    """

    value: float
    error: float
    df: float
    by_group: Floats

    @property
    def t(self) -> float:
        """Studentised; 0 where nothing varies and nothing was found."""
        return self.value / self.error if self.error > 0 else math.copysign(math.inf, self.value) if self.value else 0.0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided."""
        half = float(stdtrit(self.df, 0.5 + level / 2)) * self.error
        return self.value - half, self.value + half

    @property
    def mde(self) -> float:
        """The smallest effect found with 80 % probability at 5 %."""
        return float(ndtri(0.975) + ndtri(POWER)) * self.error

    def equivalence_p(self, bound: float) -> float:
        """p of two one-sided tests that |value| < bound."""
        if self.error <= 0:
            return 0.0 if abs(self.value) < bound else 1.0
        return float(stdtr(self.df, (abs(self.value) - bound) / self.error))


def estimated(
    value: float, influence: Floats, groups: Ints, pairs: Ints | None, *, paired: Floats | None = None
) -> Estimate:
    """An estimate from `(n,)` influence values, and `(n,)` values of rows in pairs, which are added to them."""
    n_groups = int(groups.max()) + 1
    own: Floats = np.bincount(groups, influence, n_groups).astype(np.float64)
    if pairs is None or paired is None:
        return Estimate(value, float(np.sqrt((own**2).sum())), n_groups - 1, own)
    of_pair = paired[pairs].sum(1)
    a, b = groups[pairs].T
    same = a == b
    sums = own + np.bincount(a, of_pair, n_groups) + np.bincount(b[~same], of_pair[~same], n_groups)
    low, high = np.minimum(a, b)[~same], np.maximum(a, b)[~same]
    both = np.unique(low * n_groups + high, return_inverse=True)[1]
    twice = np.bincount(both, of_pair[~same]) if len(both) else np.zeros(1)
    variance = float((sums**2).sum() - (twice**2).sum())
    halves = np.where(same, of_pair, of_pair / math.sqrt(2))
    by_group: Floats = own + np.bincount(a, halves, n_groups) + np.bincount(b[~same], halves[~same], n_groups)
    floor = float((of_pair**2).sum() + (own**2).sum()) / 4  # the dyadic sum can fall below zero in small samples
    return Estimate(value, math.sqrt(max(variance, floor)), n_groups - 1, by_group)


@dataclass(frozen=True, eq=False)
class Effect:
    """What one kind of edit does at one place.

    Attributes:
        tau: with the contrast held fixed, for tests.
        tau_full: the same with the contrast's own error, for intervals.
        total: T.
        spread: s_c; `es` = τ / s_c.
        u: cross-fitted squared effect; its error has m° held fixed.
        y_spread: s_Y.
        covariance: of τ and T.
        rows: edited.
    """

    tau: Estimate
    tau_full: Estimate
    total: Estimate
    spread: float
    u: Estimate | None
    y_spread: float
    covariance: float
    rows: int

    @property
    def es(self) -> float:
        """τ in SDs of the clean output along the contrast."""
        return self.tau.value / self.spread if self.spread else 0.0

    def es_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Of ES."""
        low, high = self.tau_full.interval(level)
        return (low / self.spread, high / self.spread) if self.spread else (0.0, 0.0)

    @property
    def es_error(self) -> float:
        """Standard error of ES."""
        return self.tau_full.error / self.spread if self.spread else 0.0

    @property
    def es_u(self) -> float:
        """sqrt(max(U, 0)) / s_Y."""
        return math.sqrt(max(self.u.value, 0.0)) / self.y_spread if self.u and self.y_spread else 0.0

    @property
    def es_u_high(self) -> float:
        """Upper bound (one-sided 95 %) of ES_U."""
        if self.u is None or not self.y_spread:
            return math.inf
        return math.sqrt(max(self.u.value + float(ndtri(0.95)) * self.u_error, 0.0)) / self.y_spread

    @property
    def u_error(self) -> float:
        """Standard error of U where it is not zero: twice that with m° held, for m° is m of another rotation."""
        return 2 * self.u.error if self.u else math.inf

    @property
    def total_is_established(self) -> bool:
        """Whether the lower 95 % bound of T is above 0."""
        return self.total.interval()[0] > 0

    @property
    def mf(self) -> float | None:
        """Mediated fraction τ / T; None where T is not established."""
        return self.tau.value / self.total.value if self.total_is_established else None

    def mf_interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """By Fieller's theorem; None where T is not established."""
        if not self.total_is_established:
            return None
        q = float(stdtrit(self.total.df, 0.5 + level / 2)) ** 2
        a = self.total.value**2 - q * self.total.error**2
        b = self.tau.value * self.total.value - q * self.covariance
        c = self.tau.value**2 - q * self.tau_full.error**2
        root = math.sqrt(max(b * b - a * c, 0.0))
        return (b - root) / a, (b + root) / a


def effect(tally: Tally, experiment: Experiment, y_spread: float) -> Effect:
    """Averages over rotations, with standard errors.

    Influence values are taken about means of groups that enter them: with m groups of a class in a fold, squares are
    larger by m / (m − 1), and there are 6 (m − 1) degrees of freedom in three folds and two classes.
    """
    n, groups, m = len(tally.tau), experiment.groups, experiment.fewest
    spare = math.sqrt(m / max(1, m - 1))
    tau, total = float(np.mean(tally.tau)), float(np.mean(tally.total))
    own, through, of_total = (spare * v / n for v in (tally.influence, tally.through_c, tally.of_total))
    if tally.pairs is None:
        fixed = estimated(tau, own, groups, None)
        full = estimated(tau, own + through, groups, None)
    else:
        fixed = estimated(tau, np.zeros_like(own), groups, tally.pairs, paired=own)
        full = estimated(tau, through, groups, tally.pairs, paired=own)
    whole = estimated(total, of_total, groups, None)
    df = min(whole.df, max(1, 2 * FOLDS * (m - 1)))
    fixed, full, whole = (replace(one, df=df) for one in (fixed, full, whole))
    return Effect(
        fixed, full, whole, float(np.mean(tally.spread)), _u(tally, groups, spare), y_spread,
        float(full.by_group @ whole.by_group), tally.rows,
    )  # fmt: skip


def _u(tally: Tally, groups: Ints, spare: float) -> Estimate | None:
    """z_U = Σ U_r / sqrt(Σ v_r): rotations add their variances, for each has its own m° held fixed."""
    if not tally.u:
        return None
    parts = [
        estimated(0.0, v, groups, None) if tally.pairs is None
        else estimated(0.0, np.zeros_like(v), groups, tally.pairs, paired=v)
        for v in tally.u_influences
    ]  # fmt: skip
    error = spare * math.sqrt(sum(part.error**2 for part in parts)) / len(parts)
    by_group = np.asarray(sum(part.by_group for part in parts)) / len(parts)
    return Estimate(float(np.mean(tally.u)), error, math.inf, by_group)
