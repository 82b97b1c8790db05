"""The floor: predict from the training labels alone, without looking at the states."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.probes._estimator import ClassifierProbe, RegressorProbe


class PriorProbe(ClassifierProbe):
    """Always predicts the commonest training label; its probabilities are the training frequencies."""

    _arrays = ("classes", "log_prior")

    log_prior_: NDArray[np.float64]

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Count the labels of the training rows."""
        _, codes = self._training_rows(X, y, fewest_classes=1)
        self.log_prior_ = np.log(np.bincount(codes) / len(codes))
        return self

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the same row of natural log probabilities N times, `(N, K)`."""
        count = len(self._rows(X))
        return np.tile(self.log_prior_, (count, 1))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags


class MeanProbe(RegressorProbe):
    """Always predicts the mean of the training targets."""

    _scalars = ("mean",)

    mean_: float

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Average the targets of the training rows."""
        _, targets = self._training_rows(X, y)
        self.mean_ = float(targets.mean())
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the mean N times, `(N,)`."""
        count = len(self._rows(X))
        return np.full(count, self.mean_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags


MEMBER = PriorProbe
REGRESSION_MEMBER = MeanProbe
