"""Helpers of measures: runs of rows that belong together, classes, and scores of one class against the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure
from probing.contracts.prediction import Prediction
from probing.errors import BadParameter
from probing.labels import Labels

Ints = NDArray[np.int64]


def labels_of(prediction: Prediction, measure: str, needs: str) -> Labels:
    """Return the labels of the rows predicted.

    Raises:
        BadParameter: not known, or rows of another kind than the measure needs.
    """
    labels = prediction.labels
    known = labels is not None and (labels.choice if needs == "choice" else labels.other_word) is not None
    if labels is None or not known:
        raise BadParameter(
            f"{measure} needs the rows behind a prediction",
            needed=f"Prediction.labels with rows that are {needs}s",
            found="none" if labels is None else f"{labels.level}s",
            next_step="score it by accuracy or r2",
        )
    return labels


def words_of(prediction: Prediction, measure: str) -> tuple[Labels, Ints, Ints]:
    """Return the pairs predicted, and their words a and b.

    Raises:
        BadParameter: not known, or rows that are no pairs.
    """
    labels = labels_of(prediction, measure, "pair")
    return labels, labels.word, np.asarray(labels.other_word)


def runs(codes: NDArray[Any]) -> tuple[Ints, Ints]:
    """Return the rows in the order of their code, and where each code begins in that order (with the end at the
    end).
    """
    order = np.argsort(codes, kind="stable")
    change = np.flatnonzero(np.diff(codes[order])) + 1
    return order, np.concatenate([[0], change, [len(codes)]]).astype(np.int64)


def log_probabilities(prediction: Prediction, measure: str, *, believed: bool = False) -> NDArray[np.float64]:
    """Return the probe's natural log probabilities `(N, K)`; with `believed`, those tempered on dev, where there are
    any.

    Raises:
        BadParameter: the probe gives no probabilities.
    """
    if prediction.log_probabilities is None:
        raise BadParameter(
            f"{measure} needs probabilities", found="a probe without them", next_step="score it by accuracy"
        )
    found = prediction.believed if believed else prediction.log_probabilities
    assert found is not None  # refused above
    return found


def indicators(y: NDArray[Any], n_classes: int) -> NDArray[np.float64]:
    """Return `(N, K)` with 1 in the column of the row's class, else 0."""
    found = np.zeros((len(y), n_classes))
    found[np.arange(len(y)), np.asarray(y, np.int64)] = 1.0
    return found


def mean_of_known(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means over the last axis `(..., K)` of the values that are defined; NaN where none is."""
    known = np.isfinite(scores)
    count = known.sum(-1)
    total = np.where(known, scores, 0.0).sum(-1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


_BLOCK = 1 << 19

Ranked = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class OneVsRest(Measure):
    """A score of how a probe ranks rows: of two classes the second is scored, of more classes each against the rest.

    What speaks for a class is the log odds (of two) or its log probability. Classes that no row of the split has are
    left out of the mean; one that a resample lacks is left out of that resample's.
    """

    kinds = ("classes",)
    unit = "fraction"
    reads_probabilities: ClassVar[bool] = True
    needs_two_classes: ClassVar[bool] = True

    @abstractmethod
    def shares(self, has: NDArray[np.bool_], score: NDArray[Any]) -> NDArray[np.float64]:
        """Return `(N,)` numbers whose mean over the rows of the class is the score on the full sample."""

    @abstractmethod
    def ranked(self, has: NDArray[np.bool_], score: NDArray[Any], groups: NDArray[np.int64]) -> Ranked:
        """Return a function that gives `(B,)` exact scores of one class from cluster weights `(S, B)`; NaN where one
        side has no row.
        """

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return, for each of C classes, a row's share and whether it has the class, `(N, 2C)`; ranks are of the full
        sample.

        Raises:
            BadParameter: the probe gives no probabilities.
        """
        pairs = self._contrasts(y, prediction)
        columns = [column for has, score in pairs for column in (np.where(has, self.shares(has, score), 0.0), has)]
        return np.stack(columns, axis=1).astype(np.float64) if columns else np.full((len(y), 2), np.nan)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the shares over the rows of the class, averaged over classes."""
        parts = totals.reshape(*totals.shape[:-1], -1, 2)
        return mean_of_known(ratio(parts[..., 0], parts[..., 1]))

    def resampled(
        self, y: NDArray[Any], prediction: Prediction, groups: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the exact scores `(R,)` under cluster weights `(R, S)`, ranked anew; each class is sorted once,
        whatever R.
        """
        step = max(1, _BLOCK // max(1, len(groups)))
        blocks = [np.ascontiguousarray(weights[low : low + step].T) for low in range(0, len(weights), step)]
        curves = (self.ranked(has, score, groups) for has, score in self._contrasts(y, prediction))
        scores = [np.concatenate([curve(block) for block in blocks]) for curve in curves]
        return mean_of_known(np.stack(scores, axis=-1)) if scores else np.full(len(weights), np.nan)

    def _contrasts(self, y: NDArray[Any], prediction: Prediction) -> list[tuple[NDArray[np.bool_], NDArray[Any]]]:
        logs = log_probabilities(prediction, type(self).__name__)
        y = np.asarray(y)
        two = logs.shape[1] == 2
        pairs = [(y == 1, logs[:, 1] - logs[:, 0])] if two else [(y == k, logs[:, k]) for k in range(logs.shape[1])]
        return [(has, score) for has, score in pairs if 0 < has.sum() < len(has)]


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `part / whole`, NaN where the whole is 0."""
    return np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan))
