"""Helpers of measures of classes: indicators, log probabilities (or a refusal), and means that skip what is
undefined.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.prediction import Prediction
from probing.errors import BadParameter


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
