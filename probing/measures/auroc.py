"""Computes the area under the ROC curve: how often a row of a class is ranked above a row of another class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.measures._rows import OneVsRest, Ranked, ratio


class AUROC(OneVsRest):
    """Computes the area under the ROC curve: the probability that a row of a class has a higher score than a row of
    another class; equal scores count half. With more than two classes it is the mean over classes.

    With two classes, the score is that of the second in sorted order; with more, each class is compared with all
    others, and all classes count the same. Chance is 0.5, whatever the label frequencies. The measure misleads where
    one class is rare: at 0.99, most of the rows that a threshold flags may still be false, so read it beside recall at
    a fixed rate of false positives. It depends only on the order of the scores, not on whether the probabilities are
    right.

    References:
        Hanley and McNeil 1982, The meaning and use of the area under a receiver operating characteristic curve.
    """

    def shares(self, has: NDArray[np.bool_], score: NDArray[Any]) -> NDArray[np.float64]:
        """Return, for each row of the class, the share of the other rows with a lower score; equal scores count half.
        `has` is a bool array `(N,)`, true for rows of the class, and `score` the scores of all N rows. The result is
        one number per row of the class.
        """
        others = np.sort(score[~has])
        return (np.searchsorted(others, score, "left") + np.searchsorted(others, score, "right")) / (2 * len(others))

    def ranked(self, has: NDArray[np.bool_], score: NDArray[Any], groups: NDArray[np.int64]) -> Ranked:
        """Sort the scores once and return a function that computes the area under the curve for many resamples: it
        takes cluster weights `(S, R)` (how often each of S clusters is drawn in each of R resamples) and returns R
        areas. `groups` is the cluster of each row, `(N,)`; the other arguments are those of `shares`.
        """
        order = np.argsort(score[~has], kind="stable")
        others, lower, own = score[~has][order], groups[~has][order], groups[has]
        below, upto = (np.searchsorted(others, score[has], side) for side in ("left", "right"))

        def areas(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            cumulated = np.zeros((len(lower) + 1, weights.shape[1]))
            np.cumsum(weights[lower], axis=0, out=cumulated[1:])
            mine = weights[own]
            won = (mine * (cumulated[below] + cumulated[upto])).sum(0) / 2
            return ratio(won, mine.sum(0) * cumulated[-1])

        return areas


MEMBER = AUROC
