"""Predictions of a fitted probe, in the one form that measures read, and its scores on resamples of the clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure
from probing.contracts.prediction import Prediction
from probing.contracts.probe import Probe
from probing.labels import Labels
from probing.statistics.clusters import Resampler

_CELLS = 1 << 24


def predict(probe: Probe, X: NDArray[Any], labels: Labels) -> Prediction:
    """Return a fitted probe's predictions for the N rows of `labels`, with log probabilities of all K columns where it
    has any.

    A class the probe has never seen has log probability -inf. Of several labels at once the logs are `(N, K, 2)`, of
    not having and having each.
    """
    n_classes = len(labels.classes)
    if labels.kind == "labels":
        each: Any = probe
        both = each.log_probabilities(X) if gives_probabilities(probe) else None
        return Prediction(np.asarray(probe.predict(X), np.int64), both, labels)
    if not n_classes:
        return Prediction(np.asarray(probe.predict(X), np.float64), labels=labels)
    if not gives_probabilities(probe):
        return Prediction(np.asarray(probe.predict(X), np.int64), labels=labels)
    classifier: Any = probe
    logs = np.full((len(X), n_classes), -np.inf)
    logs[:, np.asarray(classifier.classes_, np.int64)] = classifier.predict_log_proba(X)
    # No second pass over X where the prediction is the argmax of these.
    values = logs.argmax(1) if probe.predicts_most_probable else np.asarray(probe.predict(X), np.int64)
    return Prediction(values, logs, labels)


def gives_probabilities(probe: Any) -> bool:
    """Return whether a classifier has class probabilities, by scikit-learn's convention; wrapped estimators are looked
    into.
    """
    probe = getattr(probe, "base", None) or probe  # of several labels at once: what is fitted on each
    wrapped = getattr(probe, "estimator", None)
    return hasattr(probe, "predict_log_proba") and (wrapped is None or hasattr(wrapped, "predict_proba"))


def resampled(measure: Measure, y: NDArray[Any], prediction: Prediction, resampler: Resampler) -> NDArray[np.float64]:
    """Return the scores `(R,)` on the resamples, in blocks so that float32 weights are never widened all at once."""
    weights = resampler.weights
    step = len(weights) if weights.dtype == np.float64 else max(1, _CELLS // weights.shape[1])
    blocks = (weights[low : low + step].astype(np.float64, copy=False) for low in range(0, len(weights), step))
    return np.concatenate([measure.resampled(y, prediction, resampler.groups, block) for block in blocks])
