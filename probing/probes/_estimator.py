"""The input handling of every probe: checks, codes of classes, and the state that is saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, RegressorMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from probing.contracts.probe import Probe
from probing.errors import DegenerateDesign

FLOATS = (np.float64, np.float32)


class FittedState(Probe):
    """Gives the fitted state by name: the attributes in `_arrays` (numbers, texts) and `_scalars` (one number each)."""

    _arrays: ClassVar[tuple[str, ...]] = ()
    _scalars: ClassVar[tuple[str, ...]] = ()

    n_features_in_: int

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the fitted arrays by name, and `n_features_in`.

        Raises:
            NotFittedError: not fitted yet.
        """
        check_is_fitted(self)
        names = (*self._arrays, *self._scalars, "n_features_in")
        return {name: np.asarray(getattr(self, name + "_")) for name in names}

    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Set fitted attributes from `state()` and return self."""
        for name in self._arrays:
            setattr(self, name + "_", np.asarray(state[name]))
        for name in (*self._scalars, "n_features_in"):
            setattr(self, name + "_", np.asarray(state[name]).item())
        return self

    def _rows(self, X: ArrayLike) -> NDArray[Any]:
        """Return checked rows to predict for: finite numbers, of the width seen in `fit`."""
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, dtype=FLOATS, reset=False))


class ClassifierProbe(ClassifierMixin, FittedState):  # type: ignore[misc]
    """Base of probes that predict classes: subclasses give `predict_log_proba`."""

    kinds = ("classes",)
    predicts_most_probable = True

    classes_: NDArray[Any]

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities, `(N, K)`, with columns in the order of `classes_`."""
        raise NotImplementedError

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities, `(N, K)`, with columns in the order of `classes_`."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class of each row, `(N,)`, in the caller's own label values."""
        best = np.argmax(self.predict_log_proba(X), axis=1)
        chosen: NDArray[Any] = self.classes_[best]
        return chosen

    def _training_rows(self, X: ArrayLike, y: ArrayLike, *, fewest_classes: int = 2) -> tuple[Any, NDArray[np.int64]]:
        """Return checked `(X, codes)`, and set `classes_`.

        Raises:
            ValueError: wrong shapes or not finite.
            DegenerateDesign: fewer than two classes.
        """
        X, y = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(y)
        self.classes_, codes = _coded(np.asarray(y), fewest_classes=fewest_classes, who=type(self).__name__)
        return X, codes

    def _with_codes(self, y: NDArray[Any], width: int, *, fewest_classes: int = 2) -> tuple[Self, NDArray[np.int64]]:
        """Return a clone that knows its classes and width, and the codes of `y`: `fit_many` starts from these."""
        probe: Self = clone(self)
        probe.n_features_in_ = width
        probe.classes_, codes = _coded(np.asarray(y), fewest_classes=fewest_classes, who=type(self).__name__)
        return probe, codes


class RegressorProbe(RegressorMixin, FittedState):  # type: ignore[misc]
    """Base of probes that predict one real number."""

    kinds = ("real",)

    def _training_rows(self, X: ArrayLike, y: ArrayLike) -> tuple[Any, NDArray[np.float64]]:
        """Return checked `(X, y)`, `y` float64."""
        X, y = validate_data(self, X, y, dtype=FLOATS, y_numeric=True)
        return X, np.asarray(y, dtype=np.float64)


def checked_matrix(probe: Probe, X: ArrayLike) -> NDArray[Any]:
    """Return rows for `fit_many`, checked to have two axes and to be finite."""
    return np.asarray(validate_data(probe, X, dtype=FLOATS))


def same_for_every_seed(probe: Probe, fitted: Probe, seeds: Sequence[int]) -> list[Any]:
    """Return copies of one deterministic fit, one a seed, sharing its arrays."""
    state = fitted.state()
    copies = []
    for seed in seeds:
        copy = probe.with_seed(seed).with_state(state)
        for extra in ("converged_", "n_iter_", "objective_"):
            if hasattr(fitted, extra):
                setattr(copy, extra, getattr(fitted, extra))
        copies.append(copy)
    return copies


def _coded(y: NDArray[Any], *, fewest_classes: int, who: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < fewest_classes:
        raise DegenerateDesign(
            f"{who} cannot be fitted: one class in the training labels",
            needed="at least two classes",
            found=f"{len(classes)} class",
            next_step="check the label column and the training split",
        )
    return classes, codes.astype(np.int64)
