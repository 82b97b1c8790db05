"""The k nearest training rows: a check without parameters, which finds any label that near states share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probing.errors import BadParameter
from probing.probes._estimator import ClassifierProbe, Dev, FittedState, RegressorProbe
from probing.probes._rows import moments, standardise

_QUERIES, _ROWS = 1024, 8192
_KEPT_SEARCHES = 4


class Neighbours:
    """Finds the nearest of a fixed set of rows.

    Args:
        rows: the fixed rows, `(N, D)` float32.
        metric: `euclidean`, or `cosine` (a row of zeros is equally far from all others).
    """

    def __init__(self, rows: NDArray[np.float32], metric: str) -> None:
        self.metric = metric
        self._rows = torch.from_numpy(np.ascontiguousarray(_directions(rows) if metric == "cosine" else rows))
        self._kept: dict[tuple[str, int], NDArray[np.int64]] = {}

    def nearest(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the numbers of the rows nearest to each of Q queries, nearest first, `(Q, min(k, N))`.

        The last few results are cached, so probes that share this object search the same states once.
        """
        key = (hashlib.sha256(np.ascontiguousarray(queries).data).hexdigest() + str(queries.shape), k)
        if key not in self._kept:
            while len(self._kept) >= _KEPT_SEARCHES:
                self._kept.pop(next(iter(self._kept)))
            asked = _directions(queries) if self.metric == "cosine" else queries
            blocks = torch.split(torch.from_numpy(asked), _QUERIES)
            parts = [self._search(block, min(k, len(self._rows))) for block in blocks]
            self._kept[key] = torch.cat(parts).numpy()
        return self._kept[key]

    def _search(self, queries: Tensor, k: int) -> Tensor:
        """Return row numbers `(Q, k)`, ranked by x·r, or by x·r - ½‖r‖², which falls as the distance grows."""
        values, found = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for low in range(0, len(self._rows), _ROWS):
            block = self._rows[low : low + _ROWS]
            nearness = queries @ block.T
            if self.metric == "euclidean":
                nearness -= block.square().sum(1) / 2
            best, places = nearness.topk(min(k, len(block)), dim=1)
            values, found = torch.cat([values, best], 1), torch.cat([found, places + low], 1)
            values, kept = values.topk(min(k, values.shape[1]), dim=1)
            found = found.gather(1, kept)
        return found


def _directions(rows: NDArray[np.float32]) -> NDArray[Any]:
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


class _Nearest(FittedState):
    """Base of the classifier and the regressor: the standardised training rows, and the search among them."""

    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    rows_: NDArray[np.float32]
    values_: NDArray[Any]

    def __init__(self, k: int = 10, metric: str = "euclidean") -> None:
        self.k = k
        self.metric = metric

    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Set fitted attributes from `state()` and return self."""
        super().with_state(state)
        self._check()
        self._neighbours = Neighbours(self.rows_, self.metric)
        return self

    def _check(self) -> None:
        if self.k < 1:
            raise BadParameter("k must be at least 1", needed="1 or more", found=str(self.k))
        if self.metric not in ("euclidean", "cosine"):
            raise BadParameter("unknown metric", needed="euclidean or cosine", found=repr(self.metric))

    def _fit_all(
        self, X: NDArray[Any], fits: Sequence[Sequence[Self]], targets: Sequence[NDArray[Any]], dev: Dev
    ) -> None:
        """Keep the rows; all label sets and their copies share one search."""
        self._check()
        mean, scale = moments(X)
        rows = standardise(X, mean, scale)
        neighbours = Neighbours(rows, self.metric)
        for (probe,), own in zip(fits, targets, strict=True):
            probe.mean_, probe.scale_, probe.rows_, probe.values_ = mean, scale, rows, own
            probe._neighbours = neighbours

    def _near(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return codes or targets of the nearest training rows, `(N, k)`."""
        return self.values_[self._neighbours.nearest(standardise(X, self.mean_, self.scale_), self.k)]


class KNearestProbe(_Nearest, ClassifierProbe):
    """The labels of the `k` nearest training rows vote on the label of a row; distances are between standardised
    states, and the search is exact, in float32.

    Probabilities are `(count + 1) / (k + K)`, which keeps log loss finite but coarse; read accuracy and F1 instead. All
    label sets of `fit_many` share one search. The fit is the training rows themselves, so a saved probe contains them.
    A training row is its own nearest neighbour: scores on training rows mean nothing.

    Args:
        k: number of neighbours; all rows if there are fewer.
        metric: distance, `euclidean` or `cosine`.
    """

    _arrays = ("classes", "mean", "scale", "rows", "values")

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities, `(N, K)`."""
        near = self._near(self._rows(X))
        counts = np.stack([(near == code).sum(1) for code in range(len(self.classes_))], axis=1)
        return np.asarray(np.log((counts + 1) / (near.shape[1] + len(self.classes_))))


class KNearestRegressorProbe(_Nearest, RegressorProbe):
    """Predicts the mean target of the `k` nearest training rows; see `KNearestProbe`."""

    _arrays = ("mean", "scale", "rows", "values")

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the predicted values, `(N,)` float64."""
        return np.asarray(self._near(self._rows(X)).mean(1))


MEMBER = KNearestProbe
REGRESSION_MEMBER = KNearestRegressorProbe
