"""Computes the rank correlation of predicted and true distances from each word to the others of its sentence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from probing.contracts.measure import Measure, Prediction
from probing.measures._rows import runs, words_of

SHORTEST, LONGEST = 5, 50  # words of the sentences scored


class DistanceSpearman(Measure):
    """Computes the rank correlation of predicted and true distances from each word to the other words of its sentence,
    and averages it in three steps.

    It is averaged over the words of a sentence, then over the sentences of each length (5 to 50 words), then over
    lengths, as published, so that long sentences weigh no more than others. A word whose true or predicted distances
    are all equal counts 0. The correlation over all pairs at once is `spearman`.

    References:
        Hewitt & Manning 2019, A Structural Probe for Finding Syntax in Word Representations, section 4.1 (DSpr.).
    """

    kinds = ("real",)
    unit = "rho"
    needs: ClassVar[str] = "pair"
    scores_parts: ClassVar[bool] = False

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return sums and counts of correlations by sentence length, as an array `(N, 92)`. Arguments are those of
        `Measure.row_statistics`.

        There are two columns for each of the 46 lengths from 5 to 50 words. The first row of a sentence holds the
        sentence's mean correlation and a count of 1 in the two columns of its length; all else is 0.

        Raises:
            BadParameter: the rows are not pairs.
        """
        labels, a, b = words_of(prediction, "distance_spearman")
        order, starts = runs(labels.example)
        statistics = np.zeros((len(labels), 2, LONGEST - SHORTEST + 1))
        targets, values = np.asarray(y, np.float64), np.asarray(prediction.values, np.float64)
        for low, high in pairwise(starts.tolist()):
            rows = order[low:high]
            words, ends = np.unique(np.stack([a[rows], b[rows]]), return_inverse=True)
            if SHORTEST <= len(words) <= LONGEST:
                rho = _mean_correlation(ends.reshape(2, -1), len(words), targets[rows], values[rows])
                statistics[rows[0], :, len(words) - SHORTEST] = rho, 1.0
        return statistics.reshape(len(labels), -1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return, for each sample, the mean over lengths of the mean over sentences of a length; NaN if there is no
        sentence of 5 to 50 words.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(92,)` for one sample, or `(R, 92)` for R
                resamples.
        """
        total, count = np.moveaxis(totals.reshape(*totals.shape[:-1], 2, -1), -2, 0)
        means = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        lengths = (count > 0).sum(-1)
        return np.asarray(np.where(lengths > 0, means.sum(-1) / np.maximum(lengths, 1), np.nan))


def _mean_correlation(
    ends: NDArray[np.int64], n: int, targets: NDArray[np.float64], values: NDArray[np.float64]
) -> float:
    """Return the mean over words of the correlation of ranks; missing pairs are left out."""
    ranks = []
    for lengths in (targets, values):
        table = np.full((n, n), np.nan)
        table[ends[0], ends[1]] = table[ends[1], ends[0]] = lengths
        found = rankdata(table, axis=1, nan_policy="omit")
        ranks.append(found - np.nanmean(found, axis=1, keepdims=True))
    a, b = (np.nan_to_num(found) for found in ranks)
    spread = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return float(np.divide((a * b).sum(1), spread, out=np.zeros(n), where=spread > 0).mean())


MEMBER = DistanceSpearman
