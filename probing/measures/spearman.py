"""Computes Spearman's rank correlation of targets and predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction

_BLOCK = 1 << 19


class Spearman(Measure):
    """Computes Spearman's rank correlation (Pearson's correlation of midranks), which scores whether the order is
    predicted, whatever the scale.

    Ranks change with the sample, so they are computed anew for each resample, in which a cluster drawn twice counts as
    two copies of its rows.
    """

    kinds = ("real",)
    unit = "rho"

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return six numbers per row, `(N, 6)`: 1; the midrank of its target minus the mean rank; the midrank of its
        prediction minus the mean rank; the squares of these two; and their product. Ranks are those of the full sample.
        Arguments are those of `Measure.row_statistics`.
        """
        weights = np.ones((len(np.asarray(y)), 1))
        a, b = (_Order(values).midranks(weights)[:, 0] for values in (y, prediction.values))
        a, b = a - a.mean(), b - b.mean()
        return np.stack([np.ones(len(a)), a, b, a * a, b * b, a * b], axis=1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the correlation for each sample. It is NaN if all targets of the sample are equal; otherwise it is 0
        if all predictions are equal.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(6,)` for one sample, or `(R, 6)` for R
                resamples.
        """
        return _correlation(*np.moveaxis(totals, -1, 0))

    def resampled(
        self, y: NDArray[Any], prediction: Prediction, groups: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the scores `(R,)` on R resamples, with exact ranks in each; arguments are those of
        `Measure.resampled`. Only two sorts are needed, whatever R is.
        """
        orders = _Order(y), _Order(prediction.values)
        step = max(1, _BLOCK // max(1, len(groups)))
        blocks = [weights[low : low + step].T[groups] for low in range(0, len(weights), step)]
        return np.concatenate([_weighted_correlation(orders, block) for block in blocks])


class _Order:
    """One sort of N values; it gives the midranks under any row weights."""

    def __init__(self, values: NDArray[Any]) -> None:
        _, self.tie = np.unique(np.asarray(values, np.float64), return_inverse=True)
        self.sorted = np.argsort(self.tie, kind="stable")
        self.last = np.cumsum(np.bincount(self.tie)) - 1

    def midranks(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the midranks `(N, B)` under row weights `(N, B)`: those of a sample with every row repeated by its
        weight.
        """
        below = np.cumsum(weights[self.sorted], axis=0)[self.last]
        start = np.concatenate([np.zeros((1, weights.shape[1])), below[:-1]])
        ranks: NDArray[np.float64] = ((start + below + 1.0) / 2.0)[self.tie]
        return ranks


def _weighted_correlation(orders: tuple[_Order, _Order], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    n = weights.sum(0)
    a, b = (order.midranks(weights) - (n + 1) / 2 for order in orders)
    first = [(weights * ranks).sum(0) for ranks in (a, b)]
    second = [(weights * left * right).sum(0) for left, right in ((a, a), (b, b), (a, b))]
    return _correlation(n, *first, *second)


def _correlation(
    n: NDArray[Any], a: NDArray[Any], b: NDArray[Any], aa: NDArray[Any], bb: NDArray[Any], ab: NDArray[Any]
) -> NDArray[np.float64]:
    spread_a, spread_b = aa - a * a / n, bb - b * b / n
    floor = 1e-12 * n**3
    flat = (spread_a <= floor) | (spread_b <= floor)
    rho = (ab - a * b / n) / np.sqrt(np.where(flat, 1.0, spread_a * spread_b))
    return np.asarray(np.where(spread_a <= floor, np.nan, np.where(flat, 0.0, rho)))


MEMBER = Spearman
