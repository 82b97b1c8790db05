"""Macro-F1: the unweighted mean over classes of their F1, so a rare class counts as much as a frequent one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction


class MacroF1(Measure):
    """The mean of the F1 of the classes, 2·hits / (true + predicted). Classes that occur neither in the labels nor in
    the predictions are left out.
    """

    kinds = ("classes", "labels")
    unit = "fraction"

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return three blocks of K columns, `(N, 3K)`: for each class, whether the row is a correct prediction of it,
        has it, and is predicted to have it.
        """
        y, values = np.asarray(y), np.asarray(prediction.values)
        if y.ndim == 2:
            return np.concatenate([y * values, y, values], axis=1).astype(np.float64)
        n_classes = int(max(y.max(), values.max())) + 1
        rows = np.arange(len(y))
        statistics = np.zeros((len(y), 3, n_classes))
        statistics[rows, 0, y] = y == values
        statistics[rows, 1, y] = 1.0
        statistics[rows, 2, values] = 1.0
        return statistics.reshape(len(y), 3 * n_classes)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean F1 over the classes present."""
        hits, true, predicted = np.moveaxis(totals.reshape(*totals.shape[:-1], 3, -1), -2, 0)
        both = true + predicted
        f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
        return np.asarray(f1.sum(-1) / (both > 0).sum(-1))


MEMBER = MacroF1
