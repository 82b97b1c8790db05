"""Scores of classes with few rows: resamples in which every class has weight, with one more cluster that may behave in
any way.

A measure in which all classes count the same is as uncertain as the class with the fewest clusters. If all of its rows
are right, no resample of them is wrong, and one that draws none of them says nothing of the class. Here resampled
weights are exponential, so that no class is ever without rows, and a cluster that was not seen is added to the lower
end as bad, and to the upper end as good, as there can be. For the fraction of a single class these ends are the exact
binomial ones.

References:
    Gaffke 2005, Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable,
    Mathematical Methods of Statistics 14(4). Rubin 1981, The Bayesian bootstrap, Annals of Statistics 9(1). Clopper
    and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the binomial.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.measures._rows import resampled
from probing.statistics.bootstrap import exponential_weights
from probing.statistics.clusters import Resampler

Floats = NDArray[np.float64]
FEW = 50  # clusters of a class, below which a score in which it counts as much as others is judged so


def extremes(measure: Measure, y: NDArray[Any], prediction: Prediction, resampler: Resampler) -> tuple[Floats, Floats]:
    """Return the lowest and the highest scores, each `(R,)`, on the R resamples with one more cluster.

    The rows of that cluster are spread over the classes in proportion to what a row of each changes: that is where a
    deviation that was not seen costs most. Where all rows are predicted alike, so are these.
    """
    found = [_with_one_more(measure, y, prediction, resampler, worst=worst) for worst in (True, False)]
    first, second = found if measure.higher_is_better else found[::-1]
    return first, second


def _with_one_more(
    measure: Measure, y: NDArray[Any], prediction: Prediction, resampler: Resampler, *, worst: bool
) -> Floats:
    more_y, more = _unseen(np.asarray(y), prediction, worst=worst)
    joined_y, joined = np.concatenate([y, more_y]), _joined(prediction, more)
    groups = np.concatenate([resampler.groups, resampler.smooth.shape[1] + np.arange(len(more_y))])
    sizes = _sizes(np.asarray(y), more_y, resampler.groups)
    changes = _changes(measure, y, prediction, more_y, more)
    shares = changes / changes.sum() if changes.sum() > 0 else np.full(len(changes), 1.0 / len(changes))
    random = exponential_weights(1, resamples=len(resampler.smooth), seed=resampler.seed)
    weights = np.hstack([resampler.smooth, (random * (shares * sizes)).astype(resampler.smooth.dtype)])
    return resampled(measure, joined_y, joined, replace(resampler, groups=groups, weights=weights))


def _changes(
    measure: Measure, y: NDArray[Any], prediction: Prediction, more_y: NDArray[Any], more: Prediction
) -> Floats:
    """Return by how much each of the added rows alone changes the score."""
    value = measure.value(y, prediction)
    changed = [
        measure.value(np.concatenate([y, more_y[k : k + 1]]), _joined(prediction, more.take(np.array([k]))))
        for k in range(len(more_y))
    ]
    return np.abs(np.nan_to_num(np.array(changed) - value))


def _sizes(y: NDArray[Any], more_y: NDArray[Any], groups: NDArray[np.int64]) -> Floats:
    """Return how many rows like each added one a cluster has, of those that have any."""
    rows = [(y == one) if y.ndim == 1 else (y >= one).all(1) for one in more_y]
    return np.array([max(1.0, has.sum() / max(1, len(np.unique(groups[has])))) for has in rows])


def _joined(prediction: Prediction, more: Prediction) -> Prediction:
    logs = prediction.log_probabilities
    if logs is not None:
        assert more.log_probabilities is not None  # made of the same prediction
        logs = np.concatenate([logs, more.log_probabilities])
    return Prediction(np.concatenate([prediction.values, more.values]), logs)


def _unseen(y: NDArray[Any], prediction: Prediction, *, worst: bool) -> tuple[NDArray[Any], Prediction]:
    """Return the labels and predictions of one row per class that has rows, predicted as badly or as well as can be; of
    several labels per row, of one row per label, and of one without any.
    """
    values, logs = np.asarray(prediction.values), prediction.log_probabilities
    if y.ndim == 2:
        more_y = np.concatenate([np.eye(y.shape[1]), np.zeros((1, y.shape[1]))])[np.r_[y.any(0), True]].astype(y.dtype)
        more_values = (1 - more_y if worst else more_y).astype(values.dtype)
        if _is_alike(values):
            more_values = np.broadcast_to(values[:1], more_y.shape)
        of_labels = None if logs is None else np.broadcast_to(logs[:1], (len(more_y), *logs.shape[1:]))
        return more_y, Prediction(more_values, of_labels)
    counts = np.bincount(y)
    more_y = np.flatnonzero(counts).astype(y.dtype)
    if _is_alike(values) and (logs is None or _is_alike(logs)):
        same = np.zeros(len(more_y), np.int64)
        return more_y, replace(prediction, labels=None).take(same)
    named = _rarest_others(counts, more_y) if worst else more_y
    if logs is None:
        return more_y, Prediction(named.astype(values.dtype))
    certain = np.full((len(more_y), logs.shape[1]), -np.inf)
    certain[np.arange(len(more_y)), named] = 0.0
    return more_y, Prediction(named.astype(values.dtype), certain)


def _rarest_others(counts: NDArray[np.int64], classes: NDArray[Any]) -> NDArray[np.int64]:
    """Return for each class the rarest of the others, to which a false row does most harm."""
    order = classes[np.argsort(counts[classes], kind="stable")]
    if len(order) < 2:
        return np.asarray(1 - np.minimum(classes, 1), np.int64)
    return np.asarray(np.where(classes == order[0], order[1], order[0]), np.int64)


def _is_alike(values: NDArray[Any]) -> bool:
    return bool((values == values[:1]).all())
