"""Fits any scikit-learn estimator on standardised states, as a probe."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.utils.validation import check_is_fitted

from probing.errors import BadParameter
from probing.probes._estimator import ClassifierProbe, Dev, RegressorProbe
from probing.probes._rows import moments, standardise


class _IsLinear:
    """Says of a wrapped estimator whether it is one of scikit-learn's linear models; others may be, and count as not
    linear.
    """

    def __get__(self, probe: Any, owner: type) -> bool:
        given = None if probe is None else probe.estimator
        return given is None or type(given).__module__.startswith("sklearn.linear_model.")


class SklearnProbe(ClassifierProbe):
    """Makes a probe of a scikit-learn classifier: `SklearnProbe(LinearSVC())`. A clone of the estimator is fitted,
    never the estimator itself.

    A wrapped estimator can be of any class, so its fit cannot be saved: `save` and `state` raise BadParameter. Save the
    estimator with scikit-learn's tools if you trust the place where it will be read.

    Args:
        estimator: an unfitted scikit-learn classifier; None is `LogisticRegression(max_iter=1000)`.
        random_state: seed for the estimator, if it has a parameter `random_state` and that is None.

    Attributes:
        estimator_: the fitted clone.
        converged_: whether the estimator stopped before its `max_iter`; True if it does not report its iterations.
    """

    stochastic = True
    is_linear: ClassVar[Any] = _IsLinear()
    estimator_: Any

    def __init__(self, estimator: BaseEstimator | None = None, random_state: int | None = None) -> None:
        self.estimator = estimator
        self.random_state = random_state

    def _fit(self, X: NDArray[Any], y: NDArray[np.int64], dev: Dev) -> None:
        self.mean_, self.scale_ = moments(X)
        self.estimator_ = _prepared(self.estimator, LogisticRegression(max_iter=1000), self.random_state, "predict")
        self.estimator_.fit(standardise(X, self.mean_, self.scale_).astype(np.float64), y)
        self.converged_ = _converged(self.estimator_)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the label that the wrapped classifier predicts for each of the N states in X, `(N,)`."""
        rows = standardise(self._rows(X), self.mean_, self.scale_).astype(np.float64)
        chosen: NDArray[Any] = self.classes_[self.estimator_.predict(rows)]
        return chosen

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities of K classes for each of the N states in X, `(N, K)`; probabilities of 0
        are raised to the smallest float64.

        Raises:
            AttributeError: the wrapped classifier does not give probabilities.
        """
        rows = standardise(self._rows(X), self.mean_, self.scale_).astype(np.float64)
        return np.asarray(np.log(np.clip(self.estimator_.predict_proba(rows), np.finfo(np.float64).tiny, None)))

    def state(self) -> dict[str, NDArray[Any]]:
        """Raise an error, since a wrapped estimator cannot be saved: see the class."""
        check_is_fitted(self)
        raise _not_saved(self.estimator_)

    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Raise an error, since a wrapped estimator cannot be restored: see the class."""
        raise _not_saved(self.estimator)


class SklearnRegressorProbe(RegressorProbe):
    """Makes a probe of a scikit-learn regressor (None means `LinearRegression()`); arguments and attributes are those
    of `SklearnProbe`.
    """

    stochastic = True
    is_linear: ClassVar[Any] = _IsLinear()
    estimator_: Any

    def __init__(self, estimator: BaseEstimator | None = None, random_state: int | None = None) -> None:
        self.estimator = estimator
        self.random_state = random_state

    def _fit(self, X: NDArray[Any], y: NDArray[np.float64], dev: Dev) -> None:
        self.mean_, self.scale_ = moments(X)
        self.estimator_ = _prepared(self.estimator, LinearRegression(), self.random_state, "predict")
        self.estimator_.fit(standardise(X, self.mean_, self.scale_).astype(np.float64), y)
        self.converged_ = _converged(self.estimator_)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the value predicted for each of the N states in X, `(N,)` float64."""
        rows = standardise(self._rows(X), self.mean_, self.scale_).astype(np.float64)
        return np.asarray(self.estimator_.predict(rows), dtype=np.float64).reshape(-1)

    def state(self) -> dict[str, NDArray[Any]]:
        """Raise an error, since a wrapped estimator cannot be saved: see `SklearnProbe`."""
        check_is_fitted(self)
        raise _not_saved(self.estimator_)

    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Raise an error, since a wrapped estimator cannot be restored: see `SklearnProbe`."""
        raise _not_saved(self.estimator)


def _prepared(given: BaseEstimator | None, default: BaseEstimator, seed: int | None, method: str) -> Any:
    estimator = clone(default if given is None else given)
    if not hasattr(estimator, method):
        raise BadParameter(
            f"{type(estimator).__name__} cannot be a probe",
            needed="a scikit-learn estimator with fit and predict",
            found=type(estimator).__name__,
        )
    if seed is not None and estimator.get_params().get("random_state", 0) is None:
        estimator.set_params(random_state=seed)
    return estimator


def _converged(estimator: Any) -> bool:
    limit = getattr(estimator, "max_iter", None)
    done = getattr(estimator, "n_iter_", None)
    if limit is None or done is None or limit < 0:
        return True
    return bool(np.max(done) < limit)


def _not_saved(estimator: object) -> BadParameter:
    return BadParameter(
        "a wrapped scikit-learn probe cannot be saved",
        needed="a probe whose fit is arrays: linear, mlp, ridge, prior, word_type",
        found=f"sklearn:{type(estimator).__name__}",
        next_step="keep its results, and refit it when needed; probes are never pickled",
    )


MEMBER = SklearnProbe
REGRESSION_MEMBER = SklearnRegressorProbe
