"""Prediction: what a probe predicts for each row. Measure: the contract of scores that are computed from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.labels import Kind, Labels


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
            (`measures/_rows.py`), of the same shape, for measures that count bits; None: not scaled.
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
        """Return the predictions for the rows with these indices, in the order given."""
        logs, labels, tempered = self.log_probabilities, self.labels, self.tempered
        return Prediction(
            self.values[rows],
            None if logs is None else logs[rows],
            None if labels is None else labels.take(rows),
            None if tempered is None else tempered[rows],
        )


class Measure(ABC):
    """A score that is a function of sums of per-row statistics, so that the same bootstrap resamples serve every
    measure.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    unit: ClassVar[str]  # "fraction" (0 to 1; gains have a margin of 0.02), "bits" (0.05); others, "R²" …: margin 0
    higher_is_better: ClassVar[bool] = True
    reads_probabilities: ClassVar[bool] = False  # True: only for probes that give probabilities
    counts_bits: ClassVar[bool] = False  # True: reads `Prediction.believed`
    needs_two_classes: ClassVar[bool] = False  # True: undefined on rows that all have one class

    def informed(self, labels: Labels) -> Measure:
        """Return a copy of this measure that knows facts about the whole label set (train too), such as label
        frequencies; measures that need none return themselves.
        """
        return self

    needs: ClassVar[str] = ""  # "pair" or "choice": only for tasks of such rows
    scores_parts: ClassVar[bool] = True  # False: rows of one sentence count together, so no part of them is scored

    @abstractmethod
    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return, for each row, the J numbers whose sums the score is computed from, `(N, J)`."""

    @abstractmethod
    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the scores `(...)` from the sums `(..., J)` of the row statistics, and return them; NaN where a score
        is not defined.
        """

    def value(self, y: NDArray[Any], prediction: Prediction) -> float:
        """Return the score on all rows."""
        return float(self.from_totals(self.row_statistics(y, prediction).sum(0)))

    def resampled(
        self, y: NDArray[Any], prediction: Prediction, groups: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the scores `(R,)` on R bootstrap resamples.

        Args:
            y: `(N,)` targets.
            prediction: predictions for the N rows.
            groups: `(N,)` cluster of each row, 0 … S-1.
            weights: `(R, S)` how often each cluster is drawn in each resample.
        """
        rows = self.row_statistics(y, prediction)
        sums = np.stack([np.bincount(groups, column, weights.shape[1]) for column in rows.T], axis=1)
        return self.from_totals(weights @ sums)
