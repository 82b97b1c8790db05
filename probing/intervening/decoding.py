"""Whether a property can be read off the states of an experiment: held-out information of a linear and an MLP probe.

This is the gate of a verdict where no `ProbeResult` was made of the same rows: each fold is predicted from the other
two, and what counts is the log-likelihood over that of the label frequencies, which a rare class cannot hide in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from probing.intervening.discriminant import Discriminant
from probing.intervening.experiment import FOLDS, Experiment
from probing.intervening.fold_states import FoldStates
from probing.probes.mlp import MLPProbe, MLPRegressorProbe

Floats = NDArray[np.float64]
LEAST_SHARE = 0.02
_NETWORK = MLPProbe(learning_rate=5e-3, batch_size=256)
_REAL_NETWORK = MLPRegressorProbe(learning_rate=5e-3, batch_size=256)


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


def decoded(experiment: Experiment, states: FoldStates, *, seed: int) -> Decoded:
    """A linear probe, and where that fails an MLP."""
    linear, p, accuracy = _scored(experiment, _linear(states))
    if p <= 0.025 and linear >= LEAST_SHARE:
        return Decoded(linear, None, p, accuracy)
    mlp, p_mlp, accuracy_mlp = _scored(experiment, _mlp(experiment, states, seed))
    return Decoded(linear, mlp, min(1.0, 2 * min(p, p_mlp)), max(accuracy, accuracy_mlp))


def _scored(e: Experiment, predicted: Sequence[Floats]) -> tuple[float, float, float]:
    """Information share, p, accuracy of what is predicted of each fold: probabilities `(n_k, K)`, or `(n_k, 1)`."""
    gains, baseline, right = (np.zeros(len(e.z)) for _ in range(3))
    for k, said in enumerate(predicted):
        test, z, others = e.fold(k), e.z[e.fold(k)], e.z[e.folds != k]
        if e.n_classes:
            prior = np.bincount(others, minlength=e.n_classes) / len(others)
            baseline[test] = -np.log(np.maximum(prior[z], 1e-12))
            gains[test] = np.log(np.maximum(said[np.arange(len(z)), z], 1e-12)) + baseline[test]
            right[test] = said.argmax(1) == z
        else:
            baseline[test] = (z - others.mean()) ** 2
            gains[test] = right[test] = baseline[test] - (z - said[:, 0]) ** 2
    by_group = np.bincount(e.groups, gains - gains.mean())
    error = math.sqrt(float((by_group**2).sum())) / len(gains)
    p = float(stdtr(len(by_group) - 1, -gains.mean() / error)) if error > 0 else float(gains.mean() <= 0)
    accuracy = right.mean() if e.n_classes else gains.mean() / baseline.mean()
    return float(gains.mean() / baseline.mean()), p, float(accuracy)


def _linear(states: FoldStates) -> list[Floats]:
    m = states.moments
    return [Discriminant(m[k - 2] + m[k - 1]).predict(states.blocks[k]) for k in range(FOLDS)]


def _mlp(e: Experiment, states: FoldStates, seed: int) -> list[Floats]:
    """Three networks, each for the fold that it was not fitted on."""
    X = np.concatenate(states.blocks, dtype=np.float32)
    z, folds = (np.concatenate([values[e.fold(k)] for k in range(FOLDS)]) for values in (e.z, e.folds))
    if e.n_classes:
        networks = _NETWORK.with_seed(seed).fit_parts(X, z, [folds != k for k in range(FOLDS)])
        return [np.exp(one.predict_log_proba(X[folds == k])) for k, one in enumerate(networks)]
    reader = _REAL_NETWORK.with_seed(seed)
    return [reader.fit(X[folds != k], z[folds != k]).predict(X[folds == k])[:, None] for k in range(FOLDS)]
