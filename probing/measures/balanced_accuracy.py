"""Computes the mean recall over classes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.measures._rows import indicators, mean_of_known


class BalancedAccuracy(Measure):
    """Computes the mean recall over classes, which is the accuracy if all classes were equally frequent.

    A probe that always predicts one class scores 1/K. It misleads where classes are rare: one row of a class of three
    rows weighs as much as thousands of rows of another class. A class that does not occur in a resample is left out of
    its mean.

    References:
        Brodersen et al. 2010, The balanced accuracy and its posterior distribution.
    """

    kinds = ("classes",)
    unit = "fraction"
    by_class: ClassVar[bool] = True

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return 0 or 1 in `(N, 2K)`: K columns for whether the row is correctly predicted as each class, then K for
        whether it has each class. Arguments are those of `Measure.row_statistics`.
        """
        y, values = np.asarray(y), np.asarray(prediction.values)
        has = indicators(y, int(y.max()) + 1)
        return np.concatenate([has * (y == values)[:, None], has], axis=1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean recall over the classes that occur, for each sample.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(2K,)` for one sample, or `(R, 2K)` for R
                resamples.
        """
        hits, rows = np.moveaxis(totals.reshape(*totals.shape[:-1], 2, -1), -2, 0)
        return mean_of_known(np.where(rows > 0, hits / np.where(rows > 0, rows, 1.0), np.nan))


MEMBER = BalancedAccuracy
