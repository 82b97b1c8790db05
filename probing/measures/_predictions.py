"""Predictions of a fitted probe, in the one form that measures read, and its scores on resamples of the clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure
from probing.contracts.prediction import Prediction
from probing.contracts.probe import Probe
from probing.errors import BadParameter
from probing.labels import Labels
from probing.statistics.clusters import Resampler

_CELLS = 1 << 24
_NEARLY_ONE = 0.01


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
    known = np.asarray(classifier.classes_, np.int64)
    logs = np.full((len(X), n_classes), -np.inf)
    logs[:, known] = _checked(classifier.predict_log_proba(X), (len(X), len(known)), probe)
    # No second pass over X where the prediction is the argmax of these.
    values = logs.argmax(1) if probe.predicts_most_probable else np.asarray(probe.predict(X), np.int64)
    return Prediction(values, logs, labels)


def _checked(logs: Any, shape: tuple[int, int], probe: Probe) -> NDArray[np.float64]:
    """Return log probabilities of which each row sums to one: of others an accuracy or bits would be false.

    Raises:
        BadParameter: what a probe returned is none.
    """
    found = np.asarray(logs)
    if found.shape != shape or found.dtype.kind not in "fiu":
        said = f"{found.shape} of {found.dtype}"
    else:
        totals = np.exp(found.astype(np.float64)).sum(1)
        wrong = np.flatnonzero(~(np.abs(totals - 1) < _NEARLY_ONE))
        if not len(wrong):
            return found.astype(np.float64, copy=False)
        said = f"a row whose probabilities sum to {totals[wrong[0]]:.4g}"
    raise BadParameter(
        f"{type(probe).__name__}.predict_log_proba gives no log probabilities",
        needed=f"natural logs of shape {shape}, whose exponentials sum to 1 in each row",
        found=said,
        next_step="end it in scipy.special.log_softmax(scores, axis=1)",
    )


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
