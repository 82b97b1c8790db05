"""Prediction: predictions of a fitted probe, in the form that measures read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.labels import Labels


@dataclass(frozen=True)
class Prediction:
    """Holds the predictions of a fitted probe for N rows.

    Attributes:
        values: `(N,)` predicted class codes (int64) or real values (float64); for several labels a row, `(N, C)` of 0
            and 1.
        log_probabilities: `(N, K)` natural logs, float64; None for regression or probes without probabilities. For
            several labels a row, `(N, C, 2)`: of not having and of having each label.
        labels: the labels of the N rows, for measures that compare rows of one sentence.
        tempered: log probabilities whose log odds over the label frequencies are scaled by a factor fitted on dev
            (`measures/_temperatures.py`), of the same shape, for measures that count bits; None: not scaled.
    """

    values: NDArray[Any]
    log_probabilities: NDArray[np.float64] | None = None
    labels: Labels | None = None
    tempered: NDArray[np.float64] | None = None

    @property
    def believed(self) -> NDArray[np.float64] | None:
        """The log probabilities from which bits are counted: the tempered ones if there are any, else the
        probe's own.
        """
        return self.log_probabilities if self.tempered is None else self.tempered

    def take(self, rows: NDArray[Any]) -> Prediction:
        """Return the chosen rows, in the order given."""
        logs, labels, tempered = self.log_probabilities, self.labels, self.tempered
        return Prediction(
            self.values[rows],
            None if logs is None else logs[rows],
            None if labels is None else labels.take(rows),
            None if tempered is None else tempered[rows],
        )
