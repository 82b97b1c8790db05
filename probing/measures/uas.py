"""Computes the share of words whose head is predicted correctly (unlabelled attachment score)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.errors import BadParameter
from probing.measures._rows import labels_of, runs


class UAS(Measure):
    """Computes the share of words for which the most probable alternative is the right one; for the task `head`, this
    is the unlabelled attachment score.

    If c alternatives share the highest probability and the right one is among them, the word counts 1/c, so a probe
    that cannot distinguish them scores as a guess does on average. Punctuation counts like every other word; roots are
    not scored.
    """

    kinds = ("classes",)
    unit = "fraction"
    reads_probabilities: ClassVar[bool] = True
    needs: ClassVar[str] = "choice"

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return two numbers per row, `(N, 2)`, which are 0 except in the first row of each word's alternatives: there
        they are the credit for the prediction (1 if it is right, 1/c if c alternatives share the highest probability
        and the right one is among them, else 0), and 1. Arguments are those of `Measure.row_statistics`.

        Raises:
            BadParameter: the probe gives no probabilities, or the rows are not alternatives.
        """
        labels = labels_of(prediction, "uas", "choice")
        if prediction.log_probabilities is None:
            raise BadParameter("uas needs probabilities", found="a probe without them", next_step="use another probe")
        order, starts = runs(np.asarray(labels.choice))
        logs = prediction.log_probabilities[order, 1]
        best = logs == np.repeat(np.maximum.reduceat(logs, starts[:-1]), np.diff(starts))
        right = best & (np.asarray(y)[order] == 1)
        statistics = np.zeros((len(order), 2))
        first = order[starts[:-1]]
        statistics[first, 0] = np.add.reduceat(right.astype(np.float64), starts[:-1])
        statistics[first, 0] /= np.add.reduceat(best.astype(np.float64), starts[:-1])
        statistics[first, 1] = 1.0
        return statistics

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return, for each sample, the share of words for which the right alternative was predicted (ties are counted
        in part).

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(2,)` for one sample, or `(R, 2)` for R
                resamples.
        """
        return totals[..., 0] / totals[..., 1]


MEMBER = UAS
