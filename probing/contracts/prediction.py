"""Prediction: predictions of a fitted probe, in the form that measures read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.labels import Labels


@dataclass(frozen=True)
class Prediction:
    """Predictions of a fitted probe for N rows.

    Attributes:
        values: `(N,)` predicted class codes (int64) or real values (float64); of labels `(N, C)`, 0 or 1.
        log_probabilities: `(N, K)` natural logs, float64; None for regression or probes without probabilities. Of
            labels `(N, C, 2)`, of not having and having each.
        labels: the N rows themselves, for measures that compare rows of one sentence.
        tempered: the logs, of the same shape, as sure as dev bears out (`measures/_temperatures.py`), for measures that
            count bits; None: as sure as they are.
    """

    values: NDArray[Any]
    log_probabilities: NDArray[np.float64] | None = None
    labels: Labels | None = None
    tempered: NDArray[np.float64] | None = None

    @property
    def believed(self) -> NDArray[np.float64] | None:
        """The log probabilities that bits are counted from: the tempered ones, or the probe's own where there are
        none.
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
