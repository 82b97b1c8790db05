"""Standard errors, intervals and p values of effects, from the influence values of their rows: the derivative of an
estimate with respect to the weight of each row.

Rows of one group are treated as dependent; if states were exchanged, so are the rows of one set, and sets that share a
group (see `Dependence`). A p value and an interval use the same standard error: the interval contains 0 exactly if p
exceeds its level.

References:
    Fieller 1954, Some problems in interval estimation; Schuirmann 1987 (two one-sided tests).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import chndtr, ndtr, ndtri, stdtr, stdtrit

from probing.seeds import generator
from probing.use.effect_sums import EffectSums
from probing.use.experiment import Experiment

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
POWER = 0.80
LEVEL = 0.05
MOST_BOUND = 1e6  # SDs
_NO_NOISE, _LARGE = 1e-12, 1e6
LEAST_HOLD = 0.1  # of T / C: what is made up for is at most a factor of three


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number with its standard error and the contribution of each group to that error.

    Attributes:
        value, error: in the number's own unit.
        df: degrees of freedom.
        by_group: `(G,)` contribution of each group, for the multiplier bootstrap; the squares sum to error² where no
            exchange crosses groups.
    """

    value: float
    error: float
    df: float
    by_group: Floats

    @property
    def t(self) -> float:
        """Value divided by its standard error; 0 if both are 0."""
        return self.value / self.error if self.error > 0 else math.copysign(math.inf, self.value) if self.value else 0.0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided interval at a level."""
        half = float(stdtrit(self.df, 0.5 + level / 2)) * self.error
        return self.value - half, self.value + half

    @property
    def smallest_detectable_effect(self) -> float:
        """Smallest effect that is detected with 80 % probability at 5 %."""
        return float(ndtri(0.975) + ndtri(POWER)) * self.error

    def equivalence_p(self, bound: float) -> float:
        """Return the p of two one-sided tests that |value| < bound."""
        if self.error <= 0:
            return 0.0 if abs(self.value) < bound else 1.0
        return float(stdtr(self.df, (abs(self.value) - bound) / self.error))


@dataclass(frozen=True, eq=False)
class Effect:
    """Holds the estimated effect of one kind of edit at one place, with standard errors; docs/use.md defines the
    symbols.

    Attributes:
        tau: τ, the change of the behaviour along the fitted natural contrast, with the contrast held fixed; tests,
            intervals and bounds use this estimate.
        tau_full: τ with an error that includes that of fitting the contrast; the interval of τ / T uses it.
        total: T, the natural contrast (how outputs differ between values), measured on other rows than it was fitted
            on.
        spread: s_c, the SD of the clean output along the contrast; `effect_size` is τ / (s_c · `hold`).
        size: C, the length of the fitted contrast; noise of the fit makes it longer.
        u: U, the squared effect by cross-fitting (the product of the mean changes of two rotations). Its standard error
            treats the mean change of the other rotation, m°, as fixed.
        w: W, the squared mean effect over strata, in SDs along the output direction in which it is largest: an upper
            bound of ES² along any contrast.
        w_noise: what noise would add to W if it were not cross-fitted.
        dimensions: number of dimensions of the output.
        direction: squared cosine of the angle between the fitted and the true contrast.
        y_spread: s_Y, the SD of the whole clean output.
        covariance: covariance of the estimates of τ and T.
        rows: number of edited rows.
        is_single: whether there is one stratum, two values and a one-dimensional output, so that no effect can lie off
            the contrast.
        alike: for an interchange, τ when states of the *same* value are exchanged, already subtracted; None for other
            edits and for minimal pairs.
    """

    tau: Estimate
    tau_full: Estimate
    total: Estimate
    spread: float
    size: float
    u: Estimate | None
    w: Estimate | None
    w_noise: float
    dimensions: int
    direction: Estimate | None
    y_spread: float
    covariance: float
    rows: int
    is_single: bool = False
    alike: float | None = None

    @property
    def hold(self) -> float:
        """Factor by which noise in the fitted contrast shrinks an effect that is measured along it: sqrt(T / C), at
        most 1, where T is `total`, the size of the natural contrast on held-out rows, and C is `size`, the length of
        the fitted contrast.

        The fitted contrast is the true one plus noise. The noise makes its length C larger, but not T, which is
        measured on other rows. If T is not established, it is 1 (no correction); equivalence is then tested without the
        contrast.
        """
        if self.is_single or not self.total_is_established or not self.size:
            return 1.0
        return math.sqrt(min(1.0, max(self.total.value / self.size, LEAST_HOLD)))

    @property
    def unit(self) -> float:
        """Unit by which τ is divided to give the effect size: the SD of the clean output along the fitted contrast,
        times `hold`.
        """
        return self.spread * self.hold

    @property
    def effect_size(self) -> float:
        """Effect size ES: the effect τ along the natural contrast, in SDs of the clean output along it, corrected for
        noise in the fitted contrast (`hold`); 0 if the output does not vary along it.
        """
        return self.tau.value / self.unit if self.unit else 0.0

    def effect_size_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of the effect size (ES) at a level."""
        low, high = self.tau.interval(level)
        return (low / self.unit, high / self.unit) if self.unit else (0.0, 0.0)

    @property
    def effect_size_error(self) -> float:
        """Standard error of the effect size (ES)."""
        return self.tau.error / self.unit if self.unit else 0.0

    @property
    def off(self) -> float:
        """Squared size of the part of the effect that is orthogonal to the natural contrast, or differs between strata
        and pairs of classes, in units of the variance of the whole clean output: (U − (τ / `hold`)²) / s_Y².
        """
        if self.u is None or not self.y_spread or self.is_single:
            return 0.0
        along = (self.tau.value / self.hold) ** 2 if self.total_is_established else 0.0
        return (self.u.value - along) / self.y_spread**2

    @property
    def whole_effect_size(self) -> float:
        """Size of the whole effect in SDs of the clean output: sqrt(ES² + `off`), where ES is `effect_size`, the part
        along the natural contrast, and `off` the squared rest; if no contrast is established, sqrt(U) / s_Y, without
        ES.
        """
        along = self.effect_size**2 if self.total_is_established or self.is_single else 0.0
        return math.sqrt(along + max(self.off, 0.0))

    @property
    def off_high(self) -> float:
        """Upper bound (one-sided 95 %) of the part of an effect along the true contrast that is orthogonal to the
        fitted contrast, in SDs.

        The true contrast is that of the population; the fitted one is estimated from fold F2, and at an angle to it.
        The bound is `sine`, an upper bound of the sine of that angle, times the bound of the effect along the direction
        in which it is largest.
        """
        if self.is_single:
            return max(map(abs, self.effect_size_interval(0.90)))
        if self.w is None:
            return math.inf
        high = 1.0
        while self._any_direction_p(high) > LEVEL:
            if high > MOST_BOUND:
                return math.inf
            high *= 2
        if self._any_direction_p(0.0) <= LEVEL:
            return 0.0
        return self.sine * float(brentq(lambda bound: self._any_direction_p(bound) - LEVEL, 0.0, high))

    def equivalence_p(self, epsilon: float) -> float:
        """Return the largest p value of three tests against the null hypothesis that the effect is ε or more: |ES|
        along the contrast, the effect along any direction that the true contrast may have, and the whole effect.

        If the true contrast is at an angle θ to the fitted one, the part of an effect along the true contrast that is
        off the fitted one is at most sin θ times the largest effect along any direction.
        """
        if not self.spread:
            return 0.0
        along = self.tau.equivalence_p(epsilon * self.unit)
        if self.is_single:
            return along
        if self.u is None or self.w is None:
            return 1.0
        in_all = self._product_p(self.u, (epsilon * self.y_spread) ** 2, epsilon * self.y_spread * self.tau.error)
        return max(along, in_all, self._any_direction_p(epsilon / self.sine) if self.sine else 0.0)

    @property
    def sine(self) -> float:
        """Sine of the angle between the fitted and the true contrast, at the lower bound (one-sided 95 %) of the
        squared cosine; 1 where the contrast is not established.
        """
        low = self.direction.interval(0.90)[0] if self.direction else 0.0
        return math.sqrt(1 - min(1.0, max(0.0, low)))

    def _any_direction_p(self, bound: float) -> float:
        """Return the p of an effect of at least `bound` SDs along that direction in which it is largest.

        Its square with the noise in it is λ χ²(d, bound² / λ), λ the squared error along one direction, λ d what noise
        adds in all: λ is that of ES, or what noise adds on average, the larger. Of few groups λ is larger as the
        quantiles of t are than those of the normal distribution.
        """
        assert self.w is not None
        if self.w_noise <= _NO_NOISE * (self.w.value + bound**2):
            return float(self.w.value >= bound**2)
        scale = max(self.effect_size_error**2, self.w_noise / self.dimensions)
        scale *= (float(stdtrit(self.w.df, 1 - LEVEL)) / float(ndtri(1 - LEVEL))) ** 2
        square, d = max(0.0, self.w.value + self.w_noise), max(1.0, self.w_noise / scale)
        if square + bound**2 > _LARGE * scale:  # where the series of χ² gives out it is normal
            mean, spread = scale * d + bound**2, scale * math.sqrt(2 * d + 4 * bound**2 / scale)
            return float(ndtr((square - mean) / spread))
        return float(chndtr(square / scale, d, bound**2 / scale))

    @staticmethod
    def _product_p(product: Estimate, bound: float, single: float) -> float:
        """Return the p of a cross-fitted square of at least the bound.

        Its own error has m° held, and is all there is where nothing is changed. At the bound the error of the effect
        itself comes on top: `single` is the root of the bound times that error, of the mean of three rotations.
        """
        error = math.sqrt(product.error**2 + 3 * single**2)
        return float(stdtr(product.df, (product.value - bound) / error)) if error > 0 else float(product.value >= bound)

    @property
    def total_is_established(self) -> bool:
        """Whether the natural contrast is established: the lower end of the 95 % interval of its size T is above 0."""
        return self.total.interval()[0] > 0

    @property
    def mediated_fraction(self) -> float | None:
        """Mediated fraction τ / T: the share of the natural contrast that the edit reproduces; None where T is not
        established.
        """
        return self.tau.value / self.total.value if self.total_is_established else None

    def mediated_fraction_interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return the interval of the mediated fraction by Fieller's theorem; None where T is not established."""
        if not self.total_is_established:
            return None
        return ratio_interval(self.tau_full, self.total, self.covariance, level)


def ratio_interval(
    top: Estimate, bottom: Estimate, covariance: float, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of the ratio of two estimates by Fieller's theorem; None if it is not bounded, since the
    lower one is not established.
    """
    q = float(stdtrit(bottom.df, 0.5 + level / 2)) ** 2
    a = bottom.value**2 - q * bottom.error**2
    if a <= 0:
        return None
    b = top.value * bottom.value - q * covariance
    c = top.value**2 - q * top.error**2
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a


def effect(tally: EffectSums, experiment: Experiment, y_spread: float) -> Effect:
    """Average the sums of one edit over the rotations and return its effect, with standard errors.

    Influence values are taken about means in which the rows themselves are included; `Experiment.leverage` and
    `Dependence` correct for this.
    """
    n, dependence = len(tally.tau), tally.dependence
    through, of_total = (experiment.leverage * v / n for v in (tally.through_c, tally.of_total))
    own = tally.influence / n if tally.exchanged else experiment.leverage * tally.influence / n
    df = min(experiment.df, dependence.df)
    held, parts = (
        ((np.zeros_like(own), own), (through, own)) if tally.exchanged else ((own, None), (own + through, None))
    )

    def estimate(values: list[float], single: Floats, exchanged: Floats | None = None) -> Estimate:
        error, by_group = dependence.error(single, exchanged)
        return Estimate(float(np.mean(values)), error, df, by_group)

    tau, full, total = estimate(tally.tau, *held), estimate(tally.tau, *parts), estimate(tally.total, of_total)
    u = _product(tally, experiment, tally.u, tally.u_influences)
    w = _product(tally, experiment, tally.w, tally.w_influences)
    # The mean over rotations of squares with noise is (own + 2 w) / 3.
    noise = (float(np.mean(tally.w_own)) - w.value) / n if w else 0.0
    direction = estimate(tally.direction, experiment.leverage * tally.of_direction / n) if tally.direction else None
    return Effect(
        tau,
        full,
        total,
        float(np.mean(tally.spread)),
        float(np.mean(tally.size)),
        u,
        w,
        noise,
        tally.dimensions,
        direction,
        y_spread,
        float(full.by_group @ total.by_group),
        tally.rows,
        tally.is_single,
        float(np.mean(tally.alike)) if tally.alike else None,
    )


def _product(
    tally: EffectSums, experiment: Experiment, values: Sequence[float], influences: Sequence[Floats]
) -> Estimate | None:
    """Return z_U = Σ U_r / sqrt(Σ v_r): rotations add their variances, for each has its own m° held fixed."""
    if not values:
        return None
    n, dependence = len(values), tally.dependence
    parts = [
        dependence.error(np.zeros_like(v), v / n) if tally.exchanged else dependence.error(experiment.leverage * v / n)
        for v in influences
    ]
    error = math.sqrt(sum(one**2 for one, _ in parts))
    df = min(experiment.df, dependence.df)
    return Estimate(float(np.mean(values)), error, df, np.asarray(sum(one for _, one in parts)))


DRAWS = 20_000


def max_t(estimates: Sequence[Estimate], two_sided: Sequence[bool], *, seed: int, draws: int = DRAWS) -> list[float]:
    """Return p values adjusted for all estimates at once (single-step max-T): how often, under the null hypothesis, the
    largest of all |t| is as large as the one observed.

    With normal multipliers by group, the draws of the bootstrap are normal with the correlations of the groups'
    influence values, so they are drawn from that distribution, divided by the root of χ² / df if there are few groups.

    References:
        Westfall and Young 1993; Chernozhukov, Chetverikov and Kato 2013, Gaussian approximations and multiplier
        bootstrap for maxima of sums, §3.
    """
    live = [i for i, e in enumerate(estimates) if e.error > 0 and (e.by_group != 0).any()]
    adjusted = [
        0.0 if math.isinf(e.t) and (e.t > 0 or sides) else 1.0 for e, sides in zip(estimates, two_sided, strict=True)
    ]
    if not live:
        return adjusted
    rng = generator(seed, "use", "max-T")
    drawn = _root([estimates[i] for i in live]) @ rng.standard_normal((draws, len(live))).T
    for one, i in zip(drawn, live, strict=True):
        if two_sided[i]:
            np.abs(one, out=one)
    largest = drawn.max(0)
    df = min(estimates[i].df for i in live)
    if math.isfinite(df):
        largest /= np.sqrt(rng.chisquare(df, draws) / df)
    for i in live:
        found = abs(estimates[i].t) if two_sided[i] else estimates[i].t
        adjusted[i] = float((1 + (largest >= found).sum()) / (1 + draws))
    return adjusted


def _root(estimates: Sequence[Estimate]) -> NDArray[np.float64]:
    rows = np.stack([e.by_group / np.linalg.norm(e.by_group) for e in estimates])
    values, vectors = np.linalg.eigh(rows @ rows.T)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
