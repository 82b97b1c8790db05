"""Tests whether predictions of held-out rows agree with the labels more than chance: p and interval from one source.

Agreement beyond chance is the mean of u(i, z_i), what a reader gives the right class of row i, less Σ_k p_k ū_k, what
the same readers would reach on labels that are independent of them (p: label frequencies, ū: mean scores). With u = 1
for the class that is named it is accuracy less chance, and chance is never more than the share of the commonest class.

Cross-fitted rows are not independent even where labels are random: row i is predicted from a fit that contains row j,
and j from one that contains i, so each pair counts twice. For scores that are linear in the labels this doubles the
variance of the sum; for the sign of such scores it multiplies it by 1 + 2/π at most (of n rows, a pair's covariance is
2/π times the product of its weights in both fits, and the squares of a fit's weights sum to 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TWICE_COUNTED = 2.0
TWICE_COUNTED_NAMES = 1 + 2 / math.pi


@dataclass(frozen=True)
class Agreement:
    """A mean over rows that is at most 0 in expectation where states say nothing, tested by group.

    Attributes:
        value: the mean.
        error: its standard error over groups, pairs of rows that count twice included.
        groups: effective number of groups, (Σ n_g)² / Σ n_g².
    """

    value: float
    error: float
    groups: float

    @classmethod
    def of(cls, rows: Floats, groups: Ints, inflation: float) -> Agreement:
        """Return the agreement from what each row contributes `(n,)`, and its group.

        A group's deviation is divided by 1 − its share of the rows, as if the mean had been taken without it, so that
        one that holds most rows does not hide its own noise.
        """
        value, sizes = float(rows.mean()), np.bincount(groups).astype(np.float64)
        away = np.bincount(groups, rows - value) / np.maximum(1 - sizes / len(rows), 1e-12)
        error = math.sqrt(inflation * float(away @ away)) / len(rows)
        return cls(value, error, len(rows) ** 2 / float(sizes @ sizes))

    @property
    def p(self) -> float:
        """One-sided p, from t on the effective number of groups less one.

        Where all groups agree to the last digit nothing is known of their spread; the p is then that of finding no
        group at the least agreement, (1 − value)^groups, as `probing.statistics.bootstrap.unvaried_p`.
        """
        if self._varies:
            return float(stdtr(self._df, -self.value / self.error))
        return float(np.clip(1 - self.value, 0.0, 1.0) ** self.groups)

    def half_width(self, level: float) -> float:
        """Return by how much the value must exceed a number to be above it at a one-sided level: p ≤ level ⇔ value ≥
        this.
        """
        if self._varies:
            return float(stdtrit(self._df, 1 - level)) * self.error
        return float(1 - level ** (1 / self.groups))

    @property
    def _varies(self) -> bool:
        return self.error > 1e-12 * max(1.0, abs(self.value))

    @property
    def _df(self) -> float:
        return max(1.0, self.groups - 1)


def beyond_chance(scores: Floats, z: Ints) -> Floats:
    """Return contributions `(n,)` of rows with scores `(n, K)` and classes z; their mean is the agreement beyond
    chance.

    Frequencies of labels and of scores are estimated from the same rows; that part of each row's influence is counted.
    """
    share = np.bincount(z, minlength=scores.shape[1]) / len(z)
    mean = scores.mean(0)
    return np.asarray(scores[np.arange(len(z)), z] - scores @ share - mean[z] + mean @ share)
