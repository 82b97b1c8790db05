"""Computes R², the share of the variance of a real-valued target that is predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction


class R2(Measure):
    """Computes the share of variance that is predicted: 1 − Σ(y − ŷ)² / Σ(y − ȳ)², with ŷ the prediction and ȳ the mean
    target of the rows scored. It is below 0 where predicting ȳ would be better.
    """

    kinds = ("real",)
    unit = "R²"

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return four numbers per row, `(N, 4)`: 1, the target, its square, and the squared error. The target is
        centred first, which does not change the score. Arguments are those of `Measure.row_statistics`.
        """
        y, values = np.asarray(y, np.float64), np.asarray(prediction.values, np.float64)
        centred = y - y.mean()
        return np.stack([np.ones(len(y)), centred, centred**2, (y - values) ** 2], axis=1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return R² for each sample; NaN if all targets of the sample are equal.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(4,)` for one sample, or `(R, 4)` for R
                resamples.
        """
        n, first, second, error = np.moveaxis(totals, -1, 0)
        variation = second - first**2 / n
        constant = variation <= 1e-12 * np.maximum(second, 1e-300)
        return np.asarray(np.where(constant, np.nan, 1.0 - error / np.where(constant, 1.0, variation)))


MEMBER = R2
