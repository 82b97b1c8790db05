"""Probes of several labels at once, and probes that predict from a key of the row, such as its word type."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy as shallow
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.contracts.probe import Probe
from probing.errors import BadParameter
from probing.labels import Kind
from probing.probes._estimator import ClassifierProbe, Dev, RegressorProbe


class _OfBase:
    """Gives a probe that wraps another the class attribute of that probe, which says what its `fit` is given."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, probe: EachLabelProbe | None, owner: type) -> Any:
        return getattr(Probe if probe is None else probe.base, self._name)


class EachLabelProbe(Probe):
    """Fits a copy of `base` for each of C labels; all labels of all label sets are fitted in one `fit_many`.

    A label that all training rows have, or that none has, is not fitted: the same value is predicted for every row,
    with probability 1. This probe cannot be saved.

    Args:
        base: an unfitted classifier probe.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("labels",)
    input: ClassVar[Any] = _OfBase()
    input_as_text: ClassVar[Any] = _OfBase()
    stochastic: ClassVar[Any] = _OfBase()
    predicts_most_probable: ClassVar[Any] = _OfBase()
    row_forms: ClassVar[Any] = _OfBase()
    accepts_pairs: ClassVar[Any] = _OfBase()
    accepts_blocks: ClassVar[Any] = _OfBase()
    is_linear: ClassVar[Any] = _OfBase()
    accepts_device: ClassVar[Any] = _OfBase()

    always_: NDArray[np.int64]
    fits_: dict[int, Probe]
    converged_: bool

    def __init__(self, base: Probe) -> None:
        self.base = base

    def on(self, device: str) -> Self:
        """Return this probe with a base probe that computes `fit` on a torch device, if it can."""
        moved = shallow(self)
        moved.base = self.base.on(device)
        moved.device = moved.base.device
        return moved

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on N rows and `(N, C)` labels."""
        held: Any = None if dev is None else (dev[0], [np.asarray(dev[1])])
        rows: Any = X
        fitted = self.fit_many(rows, [np.asarray(y)], [getattr(self.base, "random_state", None) or 0], dev=held)[0][0]
        self.__dict__.update(fitted.__dict__)
        return self

    def fit_many(
        self,
        X: NDArray[np.float32],
        targets: Sequence[NDArray[Any]],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[Self]]:
        """Fit every label of every label set under every seed. See `Probe.fit_many`."""
        fitted = [(m, c) for m, y in enumerate(targets) for c in np.flatnonzero(np.ptp(y, axis=0)).tolist()]
        held = None if dev is None else (dev[0], [dev[1][m][:, c] for m, c in fitted])
        parts = self.base.fit_many(X, [targets[m][:, c] for m, c in fitted], seeds, dev=held)
        found: list[list[Self]] = []
        for m, y in enumerate(targets):
            found.append([])
            for s in range(len(seeds)):
                probe: Self = self.with_seed(0)
                probe.always_ = np.asarray(y[0], np.int64)
                probe.fits_ = {c: row[s] for (n, c), row in zip(fitted, parts, strict=True) if n == m}
                probe.converged_ = all(bool(getattr(fit, "converged_", True)) for fit in probe.fits_.values())
                found[-1].append(probe)
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return 0 or 1 for each label, `(N, C)` int64."""
        rows: Any = X
        values = np.tile(self.always_, (len(rows), 1))
        for c, fit in self.fits_.items():
            values[:, c] = fit.predict(X)
        return values

    def log_probabilities(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities of not having and of having each label, `(N, C, 2)`."""
        rows: Any = X
        n_labels = len(self.always_)
        logs = np.full((len(rows), n_labels, 2), -np.inf)
        logs[:, np.arange(n_labels), self.always_] = 0.0
        for c, fit in self.fits_.items():
            one: Any = fit
            logs[:, c] = one.predict_log_proba(X)
        return logs

    def state(self) -> dict[str, NDArray[Any]]:
        """Raise BadParameter, since this probe cannot be saved."""
        raise _not_saved()

    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Raise BadParameter, since this probe cannot be restored."""
        raise _not_saved()


def _not_saved() -> BadParameter:
    return BadParameter(
        "a probe of several labels at once cannot be saved",
        needed="a task of classes or of one number",
        next_step="keep its results, and refit it when needed",
    )


class _Keyed:
    """Reads the rows of X as keys: equal rows are equal keys."""

    keys_: NDArray[np.float64]

    def _learn_keys(self, X: NDArray[Any]) -> NDArray[np.int64]:
        self.keys_, codes = _distinct(np.asarray(X, np.float64))
        return codes

    def _find_keys(self, X: NDArray[Any]) -> NDArray[np.int64]:
        """Return the index of each row into `keys_`, `(N,)`, or `len(keys_)` for a key never seen in training."""
        n = len(self.keys_)
        rows = np.concatenate([self.keys_, np.asarray(X, np.float64)])
        _, codes = _distinct(rows)
        home = np.full(codes.max() + 1, n, dtype=np.int64)
        home[codes[:n]] = np.arange(n)
        return home[codes[n:]]


def _distinct(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the distinct rows, and the number of each row among them; single columns are twenty times faster as plain
    numbers.
    """
    if rows.shape[1] == 1:
        values, codes = np.unique(rows[:, 0], return_inverse=True)
        return values[:, None], codes
    found, codes = np.unique(rows, axis=0, return_inverse=True)
    return found, codes.reshape(-1).astype(np.int64)


class KeyedVote(_Keyed, ClassifierProbe):
    """Predicts the commonest training label of the row's key; for keys that do not occur in training, the commonest
    label.

    Probabilities are `(count + smoothing · prior) / (total + smoothing)`, with the prior the training label
    frequencies: a frequent key follows its counts, a rare key is pulled towards the prior, and an unseen key gets the
    prior. If several labels are equally common for a key, the one that is commoner in training wins.

    Args:
        smoothing: weight of the prior, in pseudo-observations; above 0.
    """

    _arrays = ("classes", "keys", "log_table")
    _fewest_classes = 1

    log_table_: NDArray[np.float64]

    def __init__(self, smoothing: float = 0.5) -> None:
        self.smoothing = smoothing

    def _fit(self, X: NDArray[Any], y: NDArray[np.int64], dev: Dev) -> None:
        """Count labels by key. X: `(N, 1)` integer codes, or any rows that are equal where the key is."""
        _check_smoothing(self.smoothing)
        keys = self._learn_keys(X)
        counts = np.zeros((len(self.keys_) + 1, len(self.classes_)))
        np.add.at(counts, (keys, y), 1.0)
        prior = np.bincount(y) / len(y)
        smoothed = counts + self.smoothing * prior
        self.log_table_ = np.log(smoothed / smoothed.sum(1, keepdims=True))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities, `(N, K)`."""
        rows = self._rows(X)
        return self.log_table_[self._find_keys(rows)]


class KeyedMean(_Keyed, RegressorProbe):
    """Predicts the mean training target of the row's key; for keys that do not occur in training, the overall mean."""

    _arrays = ("keys", "means")

    means_: NDArray[np.float64]

    def _fit(self, X: NDArray[Any], y: NDArray[np.float64], dev: Dev) -> None:
        """Average targets by key. X: `(N, 1)` integer codes, or any rows that are equal where the key is."""
        keys = self._learn_keys(X)
        means = np.bincount(keys, y) / np.bincount(keys)
        self.means_ = np.append(means, y.mean())

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the predicted values, `(N,)` float64."""
        rows = self._rows(X)
        return self.means_[self._find_keys(rows)]


def _check_smoothing(smoothing: float) -> None:
    if not smoothing > 0:
        raise BadParameter("smoothing must be above 0", needed="a number above 0", found=repr(smoothing))
