"""Computes the root of the mean squared error, in the unit of the target."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction


class RMSE(Measure):
    """Computes the root of the mean squared error, √(Σ(y − ŷ)² / N), in the target's unit (years for a year).

    Unlike R², it is not relative to the spread of the target, so it cannot be compared between tasks. It misleads where
    a few rows have large errors, since these dominate it.
    """

    kinds = ("real",)
    unit = "of the target"
    higher_is_better = False

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return two numbers per row, `(N, 2)`: the squared error of each row, and the constant 1. Arguments are those
        of `Measure.row_statistics`.
        """
        error = np.asarray(y, np.float64) - np.asarray(prediction.values, np.float64)
        return np.stack([error**2, np.ones(len(error))], axis=1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the root of the mean squared error, for each sample.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(2,)` for one sample, or `(R, 2)` for R
                resamples.
        """
        return np.asarray(np.sqrt(totals[..., 0] / totals[..., 1]))


MEMBER = RMSE
