"""Temperatures: how far to trust a fitted probe's certainty, estimated from its predictions on dev.

Where states are wider than train has rows, classes separate in train whatever the labels, and a probe that is right
more often than the label frequencies is also far too sure: its log loss is above theirs. Its log odds over the
frequencies are therefore multiplied by one number, chosen on dev, before they are counted in bits. What it predicts,
its coefficients, its probabilities and all measures that do not count bits stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from probing.contracts.measure import Measure
from probing.contracts.prediction import Prediction
from probing.contracts.probe import Probe
from probing.labels import Labels
from probing.measures._predictions import gives_probabilities, predict

Floats = NDArray[np.float64]
_OF_NONE = -50 * float(np.log(2.0))  # what measures take the log of 0 for
_ROWS = 4096  # of dev at most: one number needs no more
_STEPS, _TOLERANCE = 50, 1e-6


@dataclass(frozen=True, eq=False)
class Tempers:
    """The temperatures of one fit: numbers that its log odds are multiplied by.

    Attributes:
        temperatures: `(1,)`; of several labels at once `(C,)`.
        priors: `(1, K)` label frequencies of train; of several labels `(C, 2)`.
    """

    temperatures: Floats
    priors: Floats

    def applied(self, prediction: Prediction) -> Prediction:
        """Return the prediction with its tempered log probabilities; values and log probabilities stay."""
        if prediction.log_probabilities is None:
            return prediction
        logs = _by_label(prediction.log_probabilities)
        found = [_tempered(logs[:, c], t, prior) for c, (t, prior) in enumerate(zip(*self._each, strict=True))]
        return replace(prediction, tempered=np.stack(found, axis=1).reshape(prediction.log_probabilities.shape))

    @property
    def _each(self) -> tuple[list[float], Floats]:
        return self.temperatures.tolist(), self.priors


def tempers_of(fits: Sequence[Probe], labels: Labels, X: Any, measures: Iterable[Measure]) -> list[Tempers] | None:
    """Return the temperatures of the fits of one label set on its dev rows, whose states are X; None if no measure
    counts bits.
    """
    rows = labels.rows("dev")
    if not any(one.counts_bits for one in measures) or not all(map(gives_probabilities, fits)) or not len(rows):
        return None
    within = calibrating(labels)
    if not isinstance(X, np.ndarray):  # laid out or streamed: read as a whole
        return [tempers_from(predict(fit, X, labels.take(rows)).take(within), labels) for fit in fits]
    return [tempers_from(predict(fit, X[within], labels.take(rows[within])), labels) for fit in fits]


def calibrating(labels: Labels) -> NDArray[np.int64]:
    """Return which of the dev rows temperatures are chosen on: at most 4,096, evenly spaced.

    Of rows whose input train has as well a probe is surer than of new ones: they do not count, where there are others.
    """
    rows = labels.rows("dev")
    within = np.arange(len(rows))
    if labels.fresh is not None and labels.fresh[rows].any():
        within = np.flatnonzero(labels.fresh[rows])
    return within[np.linspace(0, len(within) - 1, min(len(within), _ROWS)).astype(np.int64)]


def tempers_from(prediction: Prediction, labels: Labels) -> Tempers:
    """Return the temperatures from a fit's predictions for the `calibrating` dev rows."""
    assert prediction.log_probabilities is not None  # the caller asked whether there are any
    logs, within = _by_label(prediction.log_probabilities), calibrating(labels)
    y = labels.y[labels.rows("dev")][within].reshape(len(within), -1)
    trained = labels.y[labels.rows("train")].reshape(-1, y.shape[1])
    priors = np.stack([np.bincount(of, minlength=logs.shape[2]) / len(of) for of in trained.T])
    return Tempers(np.array([temperature(logs[:, c], y[:, c], prior) for c, prior in enumerate(priors)]), priors)


def temperature(logs: Floats, y: NDArray[np.int64], prior: Floats) -> float:
    """Return the t ≥ 0 that minimises mean log loss + (t − 1)² / 2N of log p ∝ log prior + t (log p − log prior).

    It is convex in t. The penalty counts as one row that says that the probe knows how sure it is: t stays finite
    where all rows are right, and near 1 where rows are few. At t = 0 only the label frequencies are left.

    Args:
        logs: `(N, K)` natural logs of what the probe says.
        y: `(N,)` codes.
        prior: `(K,)` label frequencies of train; rows of a class that it has not are left out.

    References:
        Guo et al. 2017, On calibration of modern neural networks, §4.2 (there without a prior or a penalty).
    """
    known = prior > 0
    kept = known[y]
    n = int(kept.sum())
    if not n or known.sum() < 2:
        return 1.0
    offsets, own = np.log(prior[known]), (np.cumsum(known) - 1)[y[kept]]
    scores = _finite(logs[kept][:, known]) - offsets
    chosen = scores[np.arange(n), own]
    if float((scores @ prior[known] - chosen).mean()) >= 1 / n:
        return 0.0  # the loss rises from there on
    t, low, high = 1.0, 0.0, np.inf
    for _ in range(_STEPS):
        p = np.exp(log_softmax(offsets + t * scores, axis=1))
        mean = (p * scores).sum(1)
        slope = float((mean - chosen).mean()) + (t - 1) / n
        curvature = float(((p * scores**2).sum(1) - mean**2).mean()) + 1 / n
        low, high = (low, t) if slope > 0 else (t, high)
        after = t - slope / curvature
        if not low <= after <= high:  # where log loss is flat, Newton's step is too long
            after = (low + high) / 2 if np.isfinite(high) else 2 * t + 1
        if abs(after - t) <= _TOLERANCE * (1 + t):
            return float(after)
        t = after
    return float(t)


def _by_label(logs: Floats) -> Floats:
    """Return the logs as `(N, C, K)`; for classes, C is 1."""
    return logs if logs.ndim == 3 else logs[:, None]


def _finite(logs: Floats) -> Floats:
    return np.where(np.isneginf(logs), _OF_NONE, logs)


def _tempered(logs: Floats, t: float, prior: Floats) -> Floats:
    """Return the tempered logs `(N, K)`; those of a class that is not in train stay as the probe gives them."""
    known = prior > 0
    if known.sum() < 2:
        return logs
    offsets, found = np.log(prior[known]), logs.copy()
    found[:, known] = log_softmax(offsets + t * (_finite(logs[:, known]) - offsets), axis=1)
    return found
