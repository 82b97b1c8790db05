"""Computes the recall at a fixed rate of false positives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter
from probing.measures._rows import OneVsRest, Ranked, ratio


class RecallAtFPR(OneVsRest):
    """Computes the recall of a class at a threshold that flags at most a share `fpr` of the rows of other classes.

    The threshold is set on the scored rows themselves, anew in every resample, not on dev; so the measure shows what is
    possible, not what a threshold fixed beforehand would give. With two classes, the second in sorted order is flagged;
    with more, each class is compared with the rest, and the mean is reported. It misleads with few rows of other
    classes: if there are fewer than 1/fpr, not even one of them may be flagged, and the threshold is the score of a
    single row.

    Args:
        fpr: allowed share of false positives, above 0 and below 1.

    References:
        Fawcett 2006, An introduction to ROC analysis.
    """

    def __init__(self, *, fpr: float = 0.01) -> None:
        if not 0 < fpr < 1:
            raise BadParameter("fpr must lie between 0 and 1", needed="above 0 and below 1", found=str(fpr))
        self.fpr = fpr

    def shares(self, has: NDArray[np.bool_], score: NDArray[Any]) -> NDArray[np.float64]:
        """Return, for each row of the class, 1 if its score is above the threshold, else 0. The threshold is the
        highest score among the rows of other classes that must not be flagged. `has` is a bool array `(N,)`, true for
        rows of the class, and `score` the scores `(N,)`.
        """
        others = np.sort(score[~has])[::-1]
        threshold = others[int(np.floor(self.fpr * len(others) + 1e-9))]
        return np.asarray(score > threshold, np.float64)

    def ranked(self, has: NDArray[np.bool_], score: NDArray[Any], groups: NDArray[np.int64]) -> Ranked:
        """Sort the scores once and return a function that computes the recall for many resamples: it takes cluster
        weights `(S, R)` (how often each of S clusters is drawn in each of R resamples) and returns R recalls, NaN for a
        resample without rows of other classes. `groups` holds the number of the cluster of each row, `(N,)`; the other
        arguments are those of `shares`.
        """
        down, mine = np.argsort(-score[~has], kind="stable"), np.argsort(-score[has], kind="stable")
        others, own = groups[~has][down], groups[has][mine]
        # Rows of the class that lie above each row of another; equals are not flagged without it.
        above = np.searchsorted(-score[has][mine], -score[~has][down], "left")

        def recalls(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            flagged = np.cumsum(weights[others], axis=0)
            found = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights[own], axis=0)])
            # A product that is whole but for rounding counts as whole. The first row beyond is the threshold.
            within = (flagged <= np.floor(self.fpr * flagged[-1] + 1e-9)).sum(0)
            threshold = above[np.minimum(within, len(others) - 1)]
            recall = ratio(found[threshold, np.arange(weights.shape[1])], found[-1])
            return np.where(flagged[-1] > 0, recall, np.nan)

        return recalls


MEMBER = RecallAtFPR
