"""Computes the mean absolute difference of confidence and accuracy (expected calibration error)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.errors import BadParameter
from probing.measures._rows import log_probabilities


class Calibration(Measure):
    """Computes the expected calibration error: Σ over bins of (rows of the bin / N) · |mean confidence − accuracy| with
    N rows in all, where confidence is the probability of the predicted class.

    The bins hold equally many rows (equal confidences stay together) and are the same in all resamples. The measure
    misleads with few rows: for a perfectly calibrated probe of accuracy a, chance alone makes it about √(2 · bins · a(1
    − a) / (π N)), and resampling doubles that noise; the scores of the resamples are therefore shifted so that their
    mean equals the score, and cut off at 0. It does not assess the probabilities of classes that are not predicted, and
    a probe that always predicts the label frequencies is well calibrated.

    Args:
        bins: number of bins.

    References:
        Naeini, Cooper and Hauskrecht 2015, Obtaining well calibrated probabilities using Bayesian binning. Guo et al.
        2017, On calibration of modern neural networks, eq. 3. Nguyen and O'Connor 2015, Posterior calibration and
        exploratory analysis for natural language processing models (equal-mass bins).
    """

    kinds = ("classes",)
    unit = "fraction"
    higher_is_better = False
    reads_probabilities: ClassVar[bool] = True

    def __init__(self, *, bins: int = 15) -> None:
        if bins < 1:
            raise BadParameter("calibration needs bins", needed="at least 1", found=str(bins))
        self.bins = bins

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return an array `(N, bins + 1)`. The column of a row's bin contains the row's confidence, minus 1 if its
        prediction is correct; the last column contains the constant 1. Arguments are those of `Measure.row_statistics`.

        Raises:
            BadParameter: the probe gives no probabilities.
        """
        logs = log_probabilities(prediction, "calibration")
        y, values = np.asarray(y), np.asarray(prediction.values)
        rows = np.arange(len(y))
        confidence = np.exp(logs[rows, values])
        found = np.zeros((len(y), self.bins + 1))
        found[rows, _bins(confidence, self.bins)] = confidence - (y == values)
        found[:, -1] = 1.0
        return found

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum over bins of |sum of confidence − number of correct rows|, divided by the number of rows, for
        each sample.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(bins + 1,)` for one sample, or `(R, bins + 1)`
                for R resamples.
        """
        return np.asarray(np.abs(totals[..., :-1]).sum(-1) / totals[..., -1])

    def resampled(
        self, y: NDArray[Any], prediction: Prediction, groups: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the scores `(R,)` on R resamples; arguments are those of `Measure.resampled`. The mean amount by which
        resampling raises scores is subtracted; no score is below 0.
        """
        raw = super().resampled(y, prediction, groups, weights)
        raised = raw.mean() - self.value(y, prediction) if len(raw) > 1 else 0.0
        return np.maximum(0.0, raw - raised)


def _bins(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Return the bin of each row, `(N,)`: its rank (the lowest among equals), cut into equal parts."""
    rank = np.searchsorted(np.sort(confidence), confidence, "left")
    return np.asarray(rank * bins // len(confidence), np.int64)


MEMBER = Calibration
