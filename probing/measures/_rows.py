"""Helpers of measures that need the rows behind a prediction: runs of rows that belong together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.prediction import Prediction
from probing.errors import BadParameter
from probing.labels import Labels

Ints = NDArray[np.int64]


def labels_of(prediction: Prediction, measure: str, needs: str) -> Labels:
    """Return the labels of the rows predicted.

    Raises:
        BadParameter: not known, or rows of another kind than the measure needs.
    """
    labels = prediction.labels
    known = labels is not None and (labels.choice if needs == "choice" else labels.other_word) is not None
    if labels is None or not known:
        raise BadParameter(
            f"{measure} needs the rows behind a prediction",
            needed=f"Prediction.labels with rows that are {needs}s",
            found="none" if labels is None else f"{labels.level}s",
            next_step="score it by accuracy or r2",
        )
    return labels


def words_of(prediction: Prediction, measure: str) -> tuple[Labels, Ints, Ints]:
    """Return the pairs predicted, and their words a and b.

    Raises:
        BadParameter: not known, or rows that are no pairs.
    """
    labels = labels_of(prediction, measure, "pair")
    return labels, labels.word, np.asarray(labels.other_word)


def runs(codes: NDArray[Any]) -> tuple[Ints, Ints]:
    """Return the rows in the order of their code, and where each code begins in that order (with the end at the
    end).
    """
    order = np.argsort(codes, kind="stable")
    change = np.flatnonzero(np.diff(codes[order])) + 1
    return order, np.concatenate([[0], change, [len(codes)]]).astype(np.int64)


def log_probabilities(prediction: Prediction, measure: str, *, believed: bool = False) -> NDArray[np.float64]:
    """Return the probe's natural log probabilities `(N, K)`; with `believed`, those tempered on dev, where there are
    any.

    Raises:
        BadParameter: the probe gives no probabilities.
    """
    if prediction.log_probabilities is None:
        raise BadParameter(
            f"{measure} needs probabilities", found="a probe without them", next_step="score it by accuracy"
        )
    found = prediction.believed if believed else prediction.log_probabilities
    assert found is not None  # refused above
    return found


def indicators(y: NDArray[Any], n_classes: int) -> NDArray[np.float64]:
    """Return `(N, K)` with 1 in the column of the row's class, else 0."""
    found = np.zeros((len(y), n_classes))
    found[np.arange(len(y)), np.asarray(y, np.int64)] = 1.0
    return found


def mean_of_known(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means over the last axis `(..., K)` of the values that are defined; NaN where none is."""
    known = np.isfinite(scores)
    count = known.sum(-1)
    total = np.where(known, scores, 0.0).sum(-1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
