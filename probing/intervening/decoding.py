"""Whether a property can be read off the states of an experiment: held-out information of a linear and an MLP probe.

This is the gate of a verdict where no `ProbeResult` was made of the same rows: each fold is predicted from the other
two, and what counts is the log-likelihood over that of the label frequencies, which a rare class cannot hide in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from probing.intervening.experiment import FOLDS, Experiment
from probing.intervening.on_states import Discriminant
from probing.probes.mlp import MLPProbe, MLPRegressorProbe

Floats = NDArray[np.float64]
LEAST_SHARE = 0.02


@dataclass(frozen=True)
class Decoded:
    """What probes read at one place.

    Attributes:
        linear, mlp: held-out information in nats a row (of real values: in R²), as a share of what there is to know;
            None: not tried, for the other passed.
        p: one-sided, by group, of the better of the two (doubled where both were tried).
        accuracy: of the better, its share of right answers (R² of real values).
    """

    linear: float | None
    mlp: float | None
    p: float
    accuracy: float

    @property
    def passes(self) -> bool:
        """p ≤ 0.05 and at least 2 % of what there is to know."""
        return self.p <= 0.05 and max(self.linear or 0.0, self.mlp or 0.0) >= LEAST_SHARE


def decoded(experiment: Experiment, states: NDArray[np.floating], *, seed: int) -> Decoded:
    """A linear probe, and where that fails an MLP, on `(n, D)` states."""
    h = np.asarray(states, np.float64)
    linear, p, accuracy = _scored(experiment, h, None)
    if p <= 0.025 and linear >= LEAST_SHARE:
        return Decoded(linear, None, p, accuracy)
    mlp, p_mlp, accuracy_mlp = _scored(experiment, h, seed)
    return Decoded(linear, mlp, min(1.0, 2 * min(p, p_mlp)), max(accuracy, accuracy_mlp))


def _scored(e: Experiment, h: Floats, mlp_seed: int | None) -> tuple[float, float, float]:
    """Information share, p, accuracy."""
    gains, baseline, right = np.zeros(len(h)), np.zeros(len(h)), np.zeros(len(h))
    for r in range(FOLDS):
        test = e.fold(r)
        train = np.flatnonzero(e.folds != r)
        if e.n_classes:
            q = _probabilities(e, h, train, test, mlp_seed)
            prior = np.bincount(e.z[train], minlength=e.n_classes) / len(train)
            baseline[test] = -np.log(np.maximum(prior[e.z[test]], 1e-12))
            gains[test] = np.log(np.maximum(q[np.arange(len(test)), e.z[test]], 1e-12)) + baseline[test]
            right[test] = q.argmax(1) == e.z[test]
        else:
            predicted = _values(e, h, train, test, mlp_seed)
            baseline[test] = (e.z[test] - e.z[train].mean()) ** 2
            gains[test] = baseline[test] - (e.z[test] - predicted) ** 2
            right[test] = gains[test]
    by_group = np.bincount(e.groups, gains - gains.mean())
    error = math.sqrt(float((by_group**2).sum())) / len(h)
    p = float(t.sf(gains.mean() / error, len(by_group) - 1)) if error > 0 else float(gains.mean() <= 0)
    accuracy = right.mean() if e.n_classes else gains.mean() / baseline.mean()
    return float(gains.mean() / baseline.mean()), p, float(accuracy)


def _probabilities(
    e: Experiment, h: Floats, train: NDArray[np.int64], test: NDArray[np.int64], mlp_seed: int | None
) -> Floats:
    if mlp_seed is None:
        return Discriminant(h[train], e.z[train], e.n_classes).predict(h[test])
    probe = MLPProbe(learning_rate=5e-3, batch_size=256, random_state=mlp_seed).fit(
        h[train].astype(np.float32), e.z[train]
    )
    return np.exp(probe.predict_log_proba(h[test].astype(np.float32)))


def _values(
    e: Experiment, h: Floats, train: NDArray[np.int64], test: NDArray[np.int64], mlp_seed: int | None
) -> Floats:
    if mlp_seed is None:
        return Discriminant(h[train], e.z[train], 0).predict(h[test])[:, 0]
    probe = MLPRegressorProbe(learning_rate=5e-3, batch_size=256, random_state=mlp_seed).fit(
        h[train].astype(np.float32), e.z[train]
    )
    return np.asarray(probe.predict(h[test].astype(np.float32)), np.float64)
