"""Defines `Prediction`, what a probe predicts for each row, and `Measure`, the base class of scores that are computed
from it.
"""

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
        values: `(N,)` predicted class codes (int64) or real values (float64). If a row can have several of C labels,
            `(N, C)` of 0 and 1.
        log_probabilities: `(N, K)` natural logs of class probabilities, float64; None for regression or probes without
            probabilities. If a row can have several of C labels, `(N, C, 2)`: for not having and for having each label.
        labels: the labels of the N rows, for measures that compare rows of one sentence.
        tempered: log probabilities of the same shape after calibration, for measures that count bits: a factor fitted
            on dev scales how far log odds lie from those of the label frequencies (`measures/_rows.py`). None if there
            is no such factor.
    """

    values: NDArray[Any]
    log_probabilities: NDArray[np.float64] | None = None
    labels: Labels | None = None
    tempered: NDArray[np.float64] | None = None

    @property
    def believed(self) -> NDArray[np.float64] | None:
        """The log probabilities from which measures count bits: `tempered` if it is given, else `log_probabilities`."""
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
    """Base class of measures (scores). Each is a function of sums of numbers that are computed for each row (a word or
    text), so that one set of bootstrap resamples serves all measures.

    Class attributes:
        kinds: kinds of labels that it can score: `classes`, `real` numbers, or `labels` (several for each row).
        unit: unit of the score. It determines the margin that a gain over a baseline has to exceed: 0.05 if the unit is
            `bits`; 0.02 if it is `fraction` (0 to 1), `R²`, `rho` or `squared probability`; 2 % of the score of the
            baseline `prior` if it is `of the target`; and 0 for any other unit.
        higher_is_better: whether a higher score is a better one.
        reads_probabilities: whether it scores only probes that give probabilities.
        counts_bits: whether it reads `Prediction.believed`, the calibrated probabilities.
        needs_two_classes: whether it is undefined on rows that all have one class.
        by_class: whether every class counts the same, so that the few rows of a rare one decide the score. Intervals
            then allow for classes with few rows (`measures/_few_rows.py`).
        needs: `pair` or `choice` if it scores only tasks whose rows are pairs of words, or alternatives of which one is
            right; "" for any task.
        scores_parts: whether a part of the rows can be scored. False if the rows of a sentence count together.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    unit: ClassVar[str]  # "fraction" (0 to 1), "bits", "R²" …: decides what margin gains have
    higher_is_better: ClassVar[bool] = True
    reads_probabilities: ClassVar[bool] = False  # True: only for probes that give probabilities
    counts_bits: ClassVar[bool] = False  # True: reads `Prediction.believed`
    needs_two_classes: ClassVar[bool] = False  # True: undefined on rows that all have one class
    by_class: ClassVar[bool] = False  # True: a rare class counts as much as a frequent one

    def informed(self, labels: Labels) -> Measure:
        """Return a copy of this measure that has stored what it needs of `labels`, those of all splits (such as label
        frequencies); a measure that needs nothing returns itself.
        """
        return self

    needs: ClassVar[str] = ""  # "pair" or "choice": only for tasks of such rows
    scores_parts: ClassVar[bool] = True  # False: rows of one sentence count together, so no part of them is scored

    @abstractmethod
    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return, for each row, the J numbers whose sums over rows the score is computed from: an array `(N, J)`. `y`
        are the targets `(N,)`. `prediction` holds what the probe predicts for these rows.
        """

    @abstractmethod
    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute scores from sums of the row statistics over rows, and return them; a score that is not defined is
        NaN.

        Args:
            totals: `(J,)` sums for one sample, or `(R, J)` for R resamples.

        Returns:
            One score for each sample: a scalar, or `(R,)`.
        """

    def value(self, y: NDArray[Any], prediction: Prediction) -> float:
        """Return the score of the prediction on all rows; `y` are their targets `(N,)`."""
        return float(self.from_totals(self.row_statistics(y, prediction).sum(0)))

    def resampled(
        self, y: NDArray[Any], prediction: Prediction, groups: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the scores `(R,)` on R bootstrap resamples.

        Args:
            y: `(N,)` targets.
            prediction: predictions for the N rows.
            groups: `(N,)` number of each row's cluster, from 0 to S − 1.
            weights: `(R, S)` how often each cluster is drawn in each resample.
        """
        rows = self.row_statistics(y, prediction)
        sums = np.stack([np.bincount(groups, column, weights.shape[1]) for column in rows.T], axis=1)
        return self.from_totals(weights @ sums)
