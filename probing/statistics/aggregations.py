"""Aggregates the scores of a text's tokens as they are read: last, mean, maximum, and exponential or rolling means."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, unknown_name

Floats = NDArray[np.float64]
AGGREGATIONS = ("last", "mean", "max", "exponential", "rolling", "rolling_max")


def running(scores: Floats, how: str, *, decay: float = 0.9, width: int = 8) -> Floats:
    """Return, for each of n tokens, the aggregate of the scores of this token and all before it, `(n,)`.

    Args:
        scores: `(n,)` scores in the order of the tokens.
        how: the aggregation. `last`, the score itself; `mean`; `max`; `exponential`, the mean eₜ = decay · eₜ₋₁ + (1 −
            decay) · sₜ with sₜ the score of token t and e₁ = s₁; `rolling`, the mean of the last `width` tokens (of
            all, while there are fewer); `rolling_max`, the largest rolling mean so far.
        decay: weight of the previous value in the exponential mean, at least 0 and below 1.
        width: number of tokens of a rolling mean, at least 1.

    Raises:
        BadParameter: there is no such aggregation, or decay or width is out of range.
    """
    if how not in AGGREGATIONS:
        raise unknown_name("aggregation", how, AGGREGATIONS, error=BadParameter)
    if not 0 <= decay < 1 or width < 1:
        raise BadParameter("an aggregation out of range", needed="0 ≤ decay < 1, width ≥ 1", found=f"{decay}, {width}")
    x = np.asarray(scores, np.float64)
    if how == "last" or not len(x):
        return x.copy()
    count = np.arange(1, len(x) + 1)
    if how == "mean":
        return np.asarray(np.cumsum(x) / count)
    if how == "max":
        return np.asarray(np.maximum.accumulate(x))
    if how == "exponential":
        found = x.copy()
        for n in range(1, len(x)):
            found[n] = decay * found[n - 1] + (1 - decay) * x[n]
        return found
    sums = np.concatenate([[0.0], np.cumsum(x)])
    means = (sums[1:] - sums[np.maximum(0, count - width)]) / np.minimum(count, width)
    return np.asarray(means if how == "rolling" else np.maximum.accumulate(means))
