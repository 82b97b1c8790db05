"""Computes the unweighted mean of the F1 of all classes, in which a rare class counts as much as a frequent one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction


class MacroF1(Measure):
    """Computes the mean of the F1 of the classes. The F1 of a class is 2·hits / (true + predicted), where `hits` are
    the rows of the class that are predicted correctly, `true` all rows of the class, and `predicted` all rows that are
    predicted as the class. Classes that occur neither in the labels nor in the predictions are left out.
    """

    kinds = ("classes", "labels")
    unit = "fraction"
    by_class: ClassVar[bool] = True

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return 0 or 1 in three blocks of K columns, `(N, 3K)`: whether the row is correctly predicted as each class,
        has it, and is predicted as it. Arguments are those of `Measure.row_statistics`.
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
        """Return the mean F1 over the classes that occur, for each sample.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(3K,)` for one sample, or `(R, 3K)` for R
                resamples.
        """
        hits, true, predicted = np.moveaxis(totals.reshape(*totals.shape[:-1], 3, -1), -2, 0)
        both = true + predicted
        f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
        return np.asarray(f1.sum(-1) / (both > 0).sum(-1))


MEMBER = MacroF1
