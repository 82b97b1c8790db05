"""Predicts from the k nearest training states, without a training step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.neighbors import NearestNeighbors

from probing.errors import BadParameter
from probing.probes._estimator import ClassifierProbe, Dev, FittedState, RegressorProbe
from probing.probes._rows import moments, standardise

_KEPT_SEARCHES = 4


class Neighbours:
    """Finds the nearest states of a fixed set, with scikit-learn's exact search.

    Args:
        rows: the fixed states, `(N, D)` float32.
        metric: `euclidean`, or `cosine` (a state of zeros is equally far from everything).
    """

    def __init__(self, rows: NDArray[np.float32], metric: str) -> None:
        self._search = NearestNeighbors(algorithm="brute", metric=metric).fit(rows)
        self._kept: dict[tuple[str, int], NDArray[np.int64]] = {}

    def nearest(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the indices of the states nearest to each of Q queries, nearest first: an array `(Q, min(k, N))`.

        The last few results are cached, so probes that share this object search the same states once.
        """
        key = (hashlib.sha256(np.ascontiguousarray(queries).data).hexdigest() + str(queries.shape), k)
        if key not in self._kept:
            while len(self._kept) >= _KEPT_SEARCHES:
                self._kept.pop(next(iter(self._kept)))
            count = min(k, self._search.n_samples_fit_)
            self._kept[key] = self._search.kneighbors(queries, count, return_distance=False)
        return self._kept[key]


class _Nearest(FittedState):
    """Base of the classifier and the regressor: the standardised training rows, and the search among them."""

    is_linear = False

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
    """Predicts the label that most of the `k` nearest training states have; distances are between standardised states,
    and the search is exact.

    The probability of a class is `(n + 1) / (k + K)`, where n of the neighbours are of this class and K is the number
    of classes. This keeps log loss finite but coarse; read accuracy and F1 instead. `fit_many` searches once for all
    its sets of labels. A saved probe contains the training states. A training state is its own nearest neighbour, so
    scores on training data mean nothing.

    Args:
        k: number of neighbours; all training states if there are fewer.
        metric: distance, `euclidean` or `cosine`.
    """

    _arrays = ("classes", "mean", "scale", "rows", "values")

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities of K classes for each of the N states in X, `(N, K)`."""
        near = self._near(self._rows(X))
        counts = np.stack([(near == code).sum(1) for code in range(len(self.classes_))], axis=1)
        return np.asarray(np.log((counts + 1) / (near.shape[1] + len(self.classes_))))


class KNearestRegressorProbe(_Nearest, RegressorProbe):
    """Predicts the mean target of the `k` nearest training states; see `KNearestProbe`."""

    _arrays = ("mean", "scale", "rows", "values")

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the value predicted for each of the N states in X, `(N,)` float64."""
        return np.asarray(self._near(self._rows(X)).mean(1))


MEMBER = KNearestProbe
REGRESSION_MEMBER = KNearestRegressorProbe
