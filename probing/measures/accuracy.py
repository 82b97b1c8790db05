"""Accuracy: the fraction of rows whose class is predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure
from probing.contracts.prediction import Prediction


class Accuracy(Measure):
    """Share of rows that are correct; with several labels a row, a row is correct if all its labels are.

    Misleads where one class dominates: read it beside the majority rate and macro-F1.
    """

    kinds = ("classes", "labels")
    unit = "fraction"

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return whether each row is correct, and 1, `(N, 2)`."""
        correct = np.asarray(prediction.values) == np.asarray(y)
        correct = correct if correct.ndim == 1 else correct.all(axis=1)
        return np.stack([correct.astype(np.float64), np.ones(len(correct))], axis=1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the number of correct rows over the number of rows."""
        return totals[..., 0] / totals[..., 1]


MEMBER = Accuracy
