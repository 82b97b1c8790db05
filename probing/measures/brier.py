"""Computes the squared distance of the predicted probabilities from the true class."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.measures._rows import indicators, log_probabilities


class Brier(Measure):
    """Computes the mean over rows of Σₖ (pₖ − 1[y = k])², with pₖ the predicted probability of class k and y the true
    class: from 0 to 2, as Brier defined it; with two classes it is twice the binary score.

    It is a proper score like log loss, but bounded: a wrong class predicted with probability 1 scores 2. It misleads
    for rare classes, for which even bad probabilities are near 0, so that the score is small.

    References:
        Brier 1950, Verification of forecasts expressed in terms of probability.
    """

    kinds = ("classes",)
    unit = "squared probability"
    higher_is_better = False
    reads_probabilities: ClassVar[bool] = True

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return two numbers per row, `(N, 2)`: the squared distance of each row's probabilities from its true class,
        and the constant 1. Arguments are those of `Measure.row_statistics`.

        Raises:
            BadParameter: the probe gives no probabilities.
        """
        p = np.exp(log_probabilities(prediction, "brier"))
        distance = ((p - indicators(y, p.shape[1])) ** 2).sum(1)
        return np.stack([distance, np.ones(len(p))], axis=1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean squared distance of the rows, for each sample.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(2,)` for one sample, or `(R, 2)` for R
                resamples.
        """
        return totals[..., 0] / totals[..., 1]


MEMBER = Brier
