"""The gate of a verdict: tests whether a property can be read off the states of an experiment.

A linear probe predicts each fold from the other two; if it does not pass, an MLP does. A probe passes if its log odds
agree with the labels and are worth at least 1 % of the label's entropy (this also detects a rare class), or if its
accuracy is above the prior. The four tests share the level of 5 %. The interval of the accuracy inverts the test of the
accuracy, so a probe whose interval lies above the prior always passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from scipy.special import ndtri, stdtr, stdtrit
from scipy.stats import rankdata

from probing.probes._descent import held_out_rows
from probing.probes.mlp import MLPProbe, MLPRegressorProbe
from probing.use.discriminant import FoldStates, Prediction, linear_predictions, prior_of, temperatures
from probing.use.experiment import FOLDS, Experiment

Ints = NDArray[np.int64]

TWICE_COUNTED = 2.0
TWICE_COUNTED_NAMES = 1 + 2 / math.pi


@dataclass(frozen=True)
class Agreement:
    """Holds a mean over rows with a test by group; its expectation is at most 0 if states carry no information.

    Attributes:
        value: the mean.
        error: standard error over groups; pairs of rows that enter twice are accounted for.
        groups: effective number of groups, (Σ n_g)² / Σ n_g².
    """

    value: float
    error: float
    groups: float

    @classmethod
    def of(cls, rows: Floats, groups: Ints, inflation: float) -> Agreement:
        """Return the mean of the contributions `(n,)` of rows, with its standard error over `groups` `(n,)`;
        `inflation` multiplies the variance.

        A group's deviation is divided by 1 − its share of the rows, as if the mean had been computed without it, so
        that a group with most of the rows does not hide its own noise.
        """
        value, sizes = float(rows.mean()), np.bincount(groups).astype(np.float64)
        away = np.bincount(groups, rows - value) / np.maximum(1 - sizes / len(rows), 1e-12)
        error = math.sqrt(inflation * float(away @ away)) / len(rows)
        return cls(value, error, len(rows) ** 2 / float(sizes @ sizes))

    @property
    def p(self) -> float:
        """One-sided p value, from t with the effective number of groups minus one as degrees of freedom.

        If all groups have exactly the same value, their spread is unknown; p is then (1 − value)^groups, as in
        `probing.statistics.bootstrap.unvaried_p`.
        """
        if self._varies:
            return float(stdtr(self._df, -self.value / self.error))
        return float(np.clip(1 - self.value, 0.0, 1.0) ** self.groups)

    def half_width(self, level: float) -> float:
        """Return the margin such that value ≥ number + margin is equivalent to p ≤ level in the one-sided test that the
        value exceeds the number.
        """
        if self._varies:
            return float(stdtrit(self._df, 1 - level)) * self.error
        return float(1 - level ** (1 / self.groups))

    @property
    def _varies(self) -> bool:
        return self.error > 1e-12 * max(1.0, abs(self.value))

    @property
    def _df(self) -> float:
        return max(1.0, self.groups - 1)


def beyond_chance(scores: Floats, z: Ints) -> Floats:
    """Return the contributions `(n,)` of rows with scores `(n, K)` and classes z, whose mean is the agreement beyond
    chance.

    Label frequencies and mean scores are estimated from the same rows; the contributions include each row's influence
    on these.
    """
    share = np.bincount(z, minlength=scores.shape[1]) / len(z)
    mean = scores.mean(0)
    return np.asarray(scores[np.arange(len(z)), z] - scores @ share - mean[z] + mean @ share)


Floats = NDArray[np.float64]
LEVEL = 0.05
LEAST_SHARE = 0.01
_NETWORK = MLPProbe(learning_rate=5e-3, batch_size=256)
_REAL_NETWORK = MLPRegressorProbe(learning_rate=5e-3, batch_size=256)


@dataclass(frozen=True)
class GateLevels:
    """Holds the significance levels of the two tests (information and accuracy) by which one kind of probe, linear or
    MLP, shows that a property is decodable at a place (the gate, which a verdict of use requires).
    """

    information: float
    accuracy: float


LINEAR, MLP = GateLevels(0.025, 0.01), GateLevels(0.01, 0.005)  # 0.05 in all


@dataclass(frozen=True)
class HeldOutScores:
    """Holds the scores of one kind of probe on rows that it was not fitted on.

    Attributes:
        information: information in nats a row (for real values: R²), as a share of the label's entropy.
        worth: estimate of that share at the best temperature, by the first term of an expansion: agreement² / 2 in nats
            (for real values, the squared correlation of normal scores).
        accuracy: share of correct predictions (R² for real values).
        prior: share of the commonest class (0 for real values).
        accuracy_low, accuracy_high: interval of the accuracy at the level of its test on either side, and never
            narrower than the test requires.
        p_information, p_accuracy: one-sided p values by group, not adjusted.
        levels: levels of the two tests.
    """

    information: float
    worth: float
    accuracy: float
    prior: float
    accuracy_low: float
    accuracy_high: float
    p_information: float
    p_accuracy: float
    levels: GateLevels

    @property
    def p(self) -> float:
        """Smaller p value of both tests, adjusted for all four; a probe whose `worth` is less than 1 % is not counted
        for information.
        """
        p = self.p_information / self.levels.information if self.worth >= LEAST_SHARE else math.inf
        return min(1.0, LEVEL * min(p, self.p_accuracy / self.levels.accuracy))


@dataclass(frozen=True)
class Decoded:
    """Holds the scores of the probes at one place, and whether the property is decodable there.

    Attributes:
        linear: scores of the linear probe.
        mlp: scores of the MLP; None if it was not tried because the linear probe passed.
    """

    linear: HeldOutScores
    mlp: HeldOutScores | None

    @property
    def better(self) -> HeldOutScores:
        """Scores of the probe with the lower p value (linear or MLP); at equal p values, those of the more accurate
        probe.
        """
        if self.mlp is None:
            return self.linear
        return min(self.linear, self.mlp, key=lambda one: (one.p, -one.accuracy))

    @property
    def p(self) -> float:
        """p value of the better probe, adjusted for all four tests."""
        return self.better.p

    @property
    def passes(self) -> bool:
        """Whether the property counts as decodable at the place: adjusted p ≤ 0.05."""
        return self.p <= LEVEL


def decoded(experiment: Experiment, states: FoldStates, *, seed: int) -> Decoded:
    """Test whether a linear probe decodes the property and, only if it does not, whether an MLP does; return the scores
    of the probes that were tested.
    """
    linear = held_out_scores(experiment, linear_predictions(experiment, states), LINEAR)
    if linear.p <= LEVEL:
        return Decoded(linear, None)
    return Decoded(linear, held_out_scores(experiment, mlp_predictions(experiment, states, seed), MLP))


def held_out_scores(e: Experiment, predictions: Sequence[Prediction], levels: GateLevels) -> HeldOutScores:
    """Score a linear probe or an MLP by cross-validation, and return its information and accuracy with p values that
    treat rows of one group as dependent.

    Args:
        e: the experiment, with the labels and groups of the rows.
        predictions: one for each of the three folds, made by a probe fitted on the other two.
        levels: significance levels of the two tests.
    """
    return _read_classes(e, predictions, levels) if e.n_classes else _read_values(e, predictions, levels)


def _read_classes(e: Experiment, predictions: Sequence[Prediction], levels: GateLevels) -> HeldOutScores:
    z, rows = e.z, np.arange(len(e.z))
    likelihood, baseline = np.zeros(len(z)), np.zeros(len(z))
    scores, named = np.zeros((2, len(z), e.n_classes))
    for k, one in enumerate(predictions):
        test, probabilities = e.fold(k), one.probabilities
        baseline[test] = np.log(one.prior[z[test]])
        likelihood[test] = np.log(np.maximum(probabilities[rows[: len(test)], z[test]], 1e-12))
        scores[test] = one.unit_scores
        named[test, probabilities.argmax(1)] = 1.0
    soft = Agreement.of(beyond_chance(scores, z), e.groups, TWICE_COUNTED)
    hard = Agreement.of(beyond_chance(named, z), e.groups, TWICE_COUNTED_NAMES)
    right = Agreement.of(named[rows, z], e.groups, 1.0)
    accuracy, half = right.value, max(one.half_width(levels.accuracy) for one in (hard, right))
    worth = max(0.0, soft.value) ** 2 / 2 / -float(baseline.mean())
    return HeldOutScores(
        1 - float(likelihood.mean() / baseline.mean()),
        worth,
        accuracy,
        float(np.bincount(z).max() / len(z)),
        max(0.0, accuracy - half),
        min(1.0, accuracy + half),
        soft.p,
        hard.p,
        levels,
    )


def _read_values(e: Experiment, predictions: Sequence[Prediction], levels: GateLevels) -> HeldOutScores:
    z = e.z
    gains, baseline, scores = np.zeros((3, len(z)))
    for k, one in enumerate(predictions):
        test = e.fold(k)
        baseline[test] = (z[test] - one.prior[0]) ** 2
        gains[test] = baseline[test] - (z[test] - one.values) ** 2
        scores[test] = one.unit_scores[:, 0]
    soft = Agreement.of(_normal_scores(z) * _normal_scores(scores), e.groups, TWICE_COUNTED)
    hard = Agreement.of(gains, e.groups, TWICE_COUNTED)
    r2, half = float(gains.mean() / baseline.mean()), hard.half_width(levels.accuracy) / float(baseline.mean())
    return HeldOutScores(r2, max(0.0, soft.value) ** 2, r2, 0.0, r2 - half, min(1.0, r2 + half), soft.p, hard.p, levels)


def _normal_scores(values: Floats) -> Floats:
    """Return the normal quantiles of the ranks, scaled to SD 1, so that a few extreme values cannot decide a
    product.

    References:
        van der Waerden 1952, Order tests for the two-sample problem and their power.
    """
    found = ndtri((rankdata(values) - 0.5) / len(values))
    return np.asarray(found / (found.std() or 1.0))


def mlp_predictions(e: Experiment, states: FoldStates, seed: int) -> list[Prediction]:
    """Return the predictions of three MLPs, each for the fold that it was not fitted on.

    Temperatures are fitted on the rows that were held out to stop training early; they are few, but the network was not
    trained on them.
    """
    X = np.concatenate(states.blocks, dtype=np.float32)
    z, folds = (np.concatenate([values[e.fold(k)] for k in range(FOLDS)]) for values in (e.z, e.folds))
    dev = held_out_rows(len(X), 0)[1]
    if e.n_classes:
        readers = _NETWORK.with_seed(seed).fit_parts(X, z, [folds != k for k in range(FOLDS)])
    prior, found = prior_of(z, e.n_classes), []
    for k in range(FOLDS):
        fit, own = folds != k, dev[folds[dev] != k]
        if e.n_classes:
            logs = readers[k].predict_log_proba(np.concatenate([X[~fit], X[own]])) - np.log(prior)
            test, inner = logs[: -len(own)], logs[-len(own) :]
            temperature = float(temperatures(inner[None], z[own], prior, e.n_classes)[0][0])
        else:
            reader = _REAL_NETWORK.with_seed(seed).fit(X[fit], z[fit])
            test, temperature = reader.predict(X[~fit])[:, None] - prior, 1.0
        found.append(Prediction(test, temperature, prior))
    return found


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
