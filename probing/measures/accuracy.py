"""Computes the share of rows whose class is predicted correctly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction


class Accuracy(Measure):
    """Computes the share of rows (words or sentences) that are predicted correctly; a row with several labels is
    correct if all of them are.

    It misleads where one class dominates: read it beside the majority rate and macro-F1.
    """

    kinds = ("classes", "labels")
    unit = "fraction"

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return two numbers per row, `(N, 2)`: whether each row is correct (1 or 0), and the constant 1. Arguments are
        those of `Measure.row_statistics`.
        """
        correct = np.asarray(prediction.values) == np.asarray(y)
        correct = correct if correct.ndim == 1 else correct.all(axis=1)
        return np.stack([correct.astype(np.float64), np.ones(len(correct))], axis=1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the number of correct rows divided by the number of rows, for each sample.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(2,)` for one sample, or `(R, 2)` for R
                resamples.
        """
        return totals[..., 0] / totals[..., 1]


MEMBER = Accuracy
