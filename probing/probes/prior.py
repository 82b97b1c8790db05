"""Predicts from the frequencies of the training labels alone, without the states: a baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.probes._estimator import ClassifierProbe, Dev, RegressorProbe


class PriorProbe(ClassifierProbe):
    """Always predicts the commonest training label; its probabilities are the training frequencies.

    Attributes:
        log_prior_: `(K,)` natural logs of the training frequencies of the classes.
    """

    _arrays = ("classes", "log_prior")
    _fewest_classes = 1

    log_prior_: NDArray[np.float64]

    def _fit(self, X: NDArray[Any], y: NDArray[np.int64], dev: Dev) -> None:
        self.log_prior_ = np.log(np.bincount(y) / len(y))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural logs of the training frequencies, the same K numbers for each of N rows: `(N, K)`."""
        count = len(self._rows(X))
        return np.tile(self.log_prior_, (count, 1))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags


class MeanProbe(RegressorProbe):
    """Always predicts the mean of the training targets.

    Attributes:
        mean_: mean of the training targets.
    """

    _scalars = ("mean",)

    mean_: float

    def _fit(self, X: NDArray[Any], y: NDArray[np.float64], dev: Dev) -> None:
        self.mean_ = float(y.mean())

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the mean of the training targets for each of N rows, `(N,)`."""
        count = len(self._rows(X))
        return np.full(count, self.mean_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags


MEMBER = PriorProbe
REGRESSION_MEMBER = MeanProbe
