"""Defines `Prediction`, what a probe predicts for each row, and `Measure`, the base class of scores that are computed
from it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter
from probing.labels import Kind, Labels
from probing.statistics.clusters import FRACTION, RHO

OF_TARGET = "of the target"  # the unit of the target, such as years
# What a gain has to exceed, by the unit of the score; in the unit of the target, as a share of what `prior` reaches.
MARGINS = {FRACTION: 0.02, "bits": 0.05, "R²": 0.02, RHO: 0.02, "squared probability": 0.02, OF_TARGET: 0.02}


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
        unit: unit of the score: one of `MARGINS`, or a name of its own for a measure that declares `margin`.
        margin: what a gain has to exceed to count, above 0, in the unit of the score; in the unit `of the target`, as a
            share of what `prior` reaches. A class that sets `unit` and no `margin` has the margin of this unit: 0.05 in
            `bits`, and 0.02 in `fraction` (0 to 1), `R²`, `rho`, `squared probability` and `of the target`. Without
            either, the class is refused when it is defined (BadParameter).
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
    unit: ClassVar[str]  # one of MARGINS, or any other beside a margin
    margin: ClassVar[float]  # what a gain has to exceed; that of the unit, if it is not declared
    higher_is_better: ClassVar[bool] = True
    reads_probabilities: ClassVar[bool] = False  # True: only for probes that give probabilities
    counts_bits: ClassVar[bool] = False  # True: reads `Prediction.believed`
    needs_two_classes: ClassVar[bool] = False  # True: undefined on rows that all have one class
    by_class: ClassVar[bool] = False  # True: a rare class counts as much as a frequent one

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the class the margin of its unit, if it declares none.

        Raises:
            BadParameter: the class has a unit and no margin, or a margin that is not above 0.
        """
        super().__init_subclass__(**options)
        own = vars(cls)
        if "unit" in own and "margin" not in own:
            cls.margin = MARGINS.get(cls.unit, math.nan)
        if hasattr(cls, "unit"):
            check_margin(cls, cls.__name__)

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


def check_margin(measure: Any, name: str) -> None:
    """Raise an error unless a measure (an object or its class), called `name`, has a margin above 0.

    Raises:
        BadParameter: its unit is not one of `MARGINS` and it declares no margin, or its margin is not a number above 0.
    """
    margin = getattr(measure, "margin", math.nan)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin < math.inf:
        raise BadParameter(
            f"the measure {name} has no margin that a gain has to exceed",
            needed=f"a unit with a margin ({', '.join(f'{unit} {least:g}' for unit, least in MARGINS.items())}), or a "
            "declared `margin` above 0",
            found=f"unit {getattr(measure, 'unit', None)!r}" + ("" if margin != margin else f", margin {margin!r}"),
            next_step="set `margin` in the class to the smallest gain that would count, or `unit` to one of these",
        )
