"""Computes the log loss in bits per label."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.errors import BadParameter
from probing.measures._rows import runs

MOST_BITS = 50.0
_LEAST_LOG = -MOST_BITS * float(np.log(2.0))


class LogLoss(Measure):
    """Computes the mean of −log₂ p(true class), in bits; p is taken to be at least 2⁻⁵⁰, so a wrong class predicted
    with probability 1 adds 50 bits.

    It is a cross-entropy; the label entropy minus it is a lower bound of the information that probes of this kind can
    use. It punishes over-confidence: a probe fitted on few rows of wide states may gain accuracy and lose bits.
    `usable_information` corrects for this. In tasks where exactly one of several pairs is right (such as `head`),
    probabilities of being right are normalised over these pairs, and the loss is that of the right one. If a row can
    have several labels, the loss is the sum over labels, in bits per row.
    """

    kinds = ("classes", "labels")
    unit = "bits"
    higher_is_better = False
    reads_probabilities: ClassVar[bool] = True

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return two numbers per row, `(N, 2)`: the bits of each row, and the constant 1. In tasks where exactly one of
        several pairs is right, both numbers are 0 except in the row of the right pair. Arguments are those of
        `Measure.row_statistics`.

        Raises:
            BadParameter: the probe gives no probabilities.
        """
        log_probabilities = prediction.log_probabilities
        if log_probabilities is None:
            raise BadParameter(
                "log_loss needs probabilities", found="a probe without them", next_step="score it by accuracy"
            )
        labels, y = prediction.labels, np.asarray(y)
        if y.ndim == 2:
            logs = np.take_along_axis(log_probabilities, y[:, :, None], axis=2)[:, :, 0]
            return _bits(np.maximum(logs, _LEAST_LOG).sum(axis=1), np.ones(len(y)))
        if labels is not None and labels.choice is not None:
            return _per_choice(y, log_probabilities[:, 1], labels.choice)
        logs = log_probabilities[np.arange(len(y)), y]
        return _bits(np.maximum(logs, _LEAST_LOG), np.ones(len(y)))

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean number of bits per row, for each sample.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(2,)` for one sample, or `(R, 2)` for R
                resamples.
        """
        return totals[..., 0] / totals[..., 1]


def _bits(logs: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.maximum(-logs / np.log(2.0), 0.0) * count, count], axis=1)


def _per_choice(y: NDArray[Any], logs: NDArray[np.float64], choice: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the bits of the right alternative on its row, and 0 on all others."""
    order, starts = runs(choice)
    logs = np.maximum(logs[order], _LEAST_LOG)
    total = np.repeat(np.logaddexp.reduceat(logs, starts[:-1]), np.diff(starts))
    statistics = np.empty((len(order), 2))
    statistics[order] = _bits(logs - total, (y[order] == 1).astype(np.float64))
    return statistics


MEMBER = LogLoss
