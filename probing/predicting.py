"""What a fitted probe says of rows, in the one form that measures read, and its scores on resamples of the clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts import Measure, Prediction, Probe
from probing.design import Labels
from probing.resampling import Resampler

_CELLS = 1 << 24


def predict(probe: Probe, X: NDArray[Any], labels: Labels) -> Prediction:
    """What a fitted probe says of the N rows of `labels`, with log probabilities on all K columns where it gives any.

    A class the probe has never seen has log probability -inf.
    """
    n_classes = len(labels.classes)
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


def gives_probabilities(probe: Probe) -> bool:
    """Whether a classifier has class probabilities: scikit-learn's convention, looked up in what is wrapped."""
    wrapped = getattr(probe, "estimator", None)
    return hasattr(probe, "predict_log_proba") and (wrapped is None or hasattr(wrapped, "predict_proba"))


def resampled(measure: Measure, y: NDArray[Any], prediction: Prediction, resampler: Resampler) -> NDArray[np.float64]:
    """`(R,)` scores on the resamples, in blocks so that float32 weights are never widened all at once."""
    weights = resampler.weights
    step = len(weights) if weights.dtype == np.float64 else max(1, _CELLS // weights.shape[1])
    blocks = (weights[low : low + step].astype(np.float64, copy=False) for low in range(0, len(weights), step))
    return np.concatenate([measure.resampled(y, prediction, resampler.groups, block) for block in blocks])
