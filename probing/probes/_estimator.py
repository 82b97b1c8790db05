"""Defines the base class of probes, which checks input, makes `fit` and `fit_many` from one method `_fit`, and saves
what was fitted.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from sklearn.base import ClassifierMixin, RegressorMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from probing import registry
from probing.contracts.probe import Probe, RowBlocks
from probing.errors import BadParameter, DegenerateDesign, UnsupportedFormat
from probing.system.machine import with_typed_errors

FLOATS = (np.float64, np.float32)
Dev = tuple[Any, Any] | None


class FittedState(Probe):
    """Base class of probes of states: implements `fit`, `fit_many`, `state` and `with_state`, by means of methods and
    names that a subclass defines.

    A subclass sets its fitted attributes in `_fit`, for one set of labels, or in `_fit_all`, for several that can share
    work. It lists the names of these attributes in `_arrays` (arrays of numbers or strings) and `_scalars` (single
    numbers).
    """

    _arrays: ClassVar[tuple[str, ...]] = ()
    _scalars: ClassVar[tuple[str, ...]] = ()

    n_features_in_: int

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on `(N, D)` states and `(N,)` labels or numbers, and return self. `dev` is a pair of held-out states and
        labels, for probes that choose anything on held-out rows.

        Raises:
            ValueError: X or y has a wrong shape, or holds numbers that are not finite.
            DegenerateDesign: nothing can be learned from the labels.
            BadParameter: a parameter is out of range.
        """
        rows, target = self._training_rows(X, y)
        self._fit_all(rows, [[self]], [target], None if dev is None else (np.asarray(dev[0]), [np.asarray(dev[1])]))
        return self

    def fit_many(
        self,
        X: NDArray[Any] | RowBlocks,
        targets: Sequence[NDArray[Any]],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[Self]]:
        """Fit one probe for each set of labels in `targets` and each seed, on the same X, and return them as
        `result[m][s]`, fitted on `targets[m]` with `seeds[s]`. See `Probe.fit_many`. `dev` is a pair: held-out states,
        and their labels for each set.

        A probe that does not depend on the seed is fitted once per set of labels; its copies share their arrays.
        """
        if type(self).fit is not FittedState.fit:
            rows: Any = X
            return super().fit_many(rows, targets, seeds, dev=dev)
        rows = X if isinstance(X, RowBlocks) else np.asarray(validate_data(self.with_seed(0), X, dtype=FLOATS))
        started = [self._started(rows, y) for y in targets]
        own = seeds if self.stochastic else seeds[:1]
        fits = [[self._copied(probe, seed) for seed in own] for probe, _ in started]
        self._fit_all(rows, fits, [target for _, target in started], dev)
        if self.stochastic:
            return fits
        return [[self._copied(probe, seed) for seed in seeds] for (probe,) in fits]

    def _fit_all(self, X: Any, fits: Sequence[Sequence[Self]], targets: Sequence[NDArray[Any]], dev: Dev) -> None:
        """Set the fitted attributes of `fits[m][s]`, probes of label set m under seed s (`random_state`).

        The default fits one after the other by `_fit`.

        Args:
            X: `(N, D)` checked states; `RowBlocks` for a probe that reads these.
            fits: unfitted probes, which know their classes and width.
            targets: of each label set: codes of `classes_`, `(N,)` int64, or numbers, `(N,)` float64.
            dev: `(X, [labels of each label set])` as the caller gave them, or None.
        """
        for m, (row, target) in enumerate(zip(fits, targets, strict=True)):
            for probe in row:
                probe._fit(X, target, None if dev is None else (dev[0], dev[1][m]))

    def _fit(self, X: NDArray[Any], y: NDArray[Any], dev: Dev) -> None:
        """Set the fitted attributes from `(N, D)` states and `(N,)` codes of `classes_` (or numbers)."""
        raise NotImplementedError(f"{type(self).__name__} needs a method _fit or _fit_all")

    @abstractmethod
    def _training_rows(self, X: ArrayLike, y: ArrayLike) -> tuple[Any, NDArray[Any]]:
        """Return checked rows and targets for `fit`."""

    @abstractmethod
    def _started(self, X: Any, y: NDArray[Any]) -> tuple[Self, NDArray[Any]]:
        """Return a clone that knows its classes and its width, and the targets for `_fit_all`."""

    def _copied(self, fitted: Self, seed: int) -> Self:
        """Return a clone under the seed with all that is fitted, sharing arrays."""
        copy = self.with_seed(seed)
        parameters = copy.get_params(deep=False)
        copy.__dict__.update({name: value for name, value in vars(fitted).items() if name not in parameters})
        return copy

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the fitted arrays by name, and `n_features_in`.

        Raises:
            NotFittedError: the probe is not fitted.
        """
        check_is_fitted(self)
        names = (*self._arrays, *self._scalars, "n_features_in")
        return {name: np.asarray(getattr(self, name + "_")) for name in names}

    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Set the fitted attributes from the arrays that `state` returned, and return self."""
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
    """Base class of probes that predict classes; subclasses define `predict_log_proba`.

    Attributes:
        classes_: the classes, sorted, in the label values that `fit` was given.
    """

    kinds = ("classes",)
    predicts_most_probable = True
    _fewest_classes: ClassVar[int] = 2

    classes_: NDArray[Any]

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities of K classes for each of the N rows of X, `(N, K)`, with columns in the
        order of `classes_`.
        """
        raise NotImplementedError

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities of K classes for each of the N rows of X, `(N, K)`, with columns in the order of
        `classes_`.
        """
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class of each of the N rows of X, `(N,)`, in the label values that `fit` was
        given.
        """
        best = np.argmax(self.predict_log_proba(X), axis=1)
        chosen: NDArray[Any] = self.classes_[best]
        return chosen

    def _training_rows(self, X: ArrayLike, y: ArrayLike) -> tuple[Any, NDArray[np.int64]]:
        """Return checked `(X, codes)`, and set `classes_`.

        Raises:
            ValueError: wrong shapes or not finite.
            DegenerateDesign: fewer than two classes.
        """
        X, y = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(y)
        self.classes_, codes = self._coded(np.asarray(y))
        return X, codes

    def _started(self, X: Any, y: NDArray[Any]) -> tuple[Self, NDArray[np.int64]]:
        """Return a clone that knows its classes and its width, and the codes of `y`."""
        check_consistent_length(X, y)
        probe: Self = clone(self)
        probe.n_features_in_ = X.shape[1]
        probe.classes_, codes = self._coded(np.asarray(y))
        return probe, codes

    def _coded(self, y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < self._fewest_classes:
            raise DegenerateDesign(
                f"{type(self).__name__} cannot be fitted: one class in the training labels",
                needed="at least two classes",
                found=f"{len(classes)} class",
                next_step="check the label column and the training split",
            )
        return classes, codes.astype(np.int64)


class RegressorProbe(RegressorMixin, FittedState):  # type: ignore[misc]
    """Base class of probes that predict one real number."""

    kinds = ("real",)

    def _training_rows(self, X: ArrayLike, y: ArrayLike) -> tuple[Any, NDArray[np.float64]]:
        """Return checked `(X, y)`, `y` float64."""
        X, y = validate_data(self, X, y, dtype=FLOATS, y_numeric=True)
        return X, np.asarray(y, dtype=np.float64)

    def _started(self, X: Any, y: NDArray[Any]) -> tuple[Self, NDArray[np.float64]]:
        """Return a clone that knows its width, and the targets as float64."""
        check_consistent_length(X, y)
        probe: Self = clone(self)
        probe.n_features_in_ = X.shape[1]
        return probe, np.asarray(y, np.float64)


_MOST_BYTES = 64 * 2**20
_MOST_FEATURES = 10**7


@with_typed_errors
def load_probe(path: str | Path) -> Probe:
    """Load the probe that `Probe.save(path)` wrote, and return it; it predicts exactly what the saved probe did.

    A probe that `train` saved predicts the names of labels; its attribute `about` records its task, site, model and
    corpus.

    Args:
        path: the path given to `save`, or either of the two files.

    Raises:
        BadParameter: a file is missing.
        UnsupportedFormat: the files are not a saved probe, or its class is not registered here.
    """
    stem = Path(path)
    if stem.suffix in (".json", ".safetensors"):
        stem = stem.with_suffix("")
    card = _card(stem.with_name(stem.name + ".json"))
    kind = _registered(card, stem)
    try:
        probe = kind(**card["parameters"])
        probe = probe.with_state({**_arrays(stem.with_name(stem.name + ".safetensors")), **_texts(card["text"])})
        probe.about = card.get("about", {})
        _try(probe)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, BadParameter):
            raise
        raise _damaged(stem, f"{type(error).__name__}: {error}") from error
    return probe


def _try(probe: Probe) -> None:
    """Predict one row, so that parts of different shapes are noticed now and not in the middle of some analysis."""
    if not isinstance(probe, ClassifierProbe) or probe.input != "states":
        return
    if not 0 < probe.n_features_in_ <= _MOST_FEATURES:
        raise ValueError(f"{probe.n_features_in_} features")
    with np.errstate(all="ignore"):
        found = probe.predict_log_proba(np.zeros((1, probe.n_features_in_), np.float32))
    if found.shape != (1, len(probe.classes_)):
        raise ValueError(f"{len(probe.classes_)} classes, and predictions of shape {found.shape}")
    if np.isnan(found).any():
        raise ValueError("predictions that are not numbers")


def _card(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise BadParameter(
            "no saved probe",
            needed="two files, .json and .safetensors",
            found="none",
            where=str(file),
            next_step=f"name a file below {file.with_suffix('')}/probes/" if file.with_suffix("").is_dir() else "",
        )
    if file.stat().st_size > _MOST_BYTES:
        raise _damaged(file, f"a card of {file.stat().st_size} bytes")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"not JSON: {error}") from error
    wanted = {"probe": str, "parameters": dict, "text": dict}
    known = isinstance(card, dict) and all(isinstance(card.get(name), form) for name, form in wanted.items())
    if not known or not isinstance(card.get("about", {}), dict):
        raise _damaged(file, "keys missing or of the wrong form")
    found: dict[str, Any] = card
    return found


def _registered(card: dict[str, Any], stem: Path) -> type[Probe]:
    """Return the class among registered members' own classes: names are only compared, nothing is imported by them."""
    kind = registry.class_of(_registered_name(card), "probes")
    if kind is not None and issubclass(kind, Probe):
        return kind
    raise UnsupportedFormat(
        "a saved probe of a class that is not registered here",
        needed=f"one of: {', '.join(registry.names('probes'))}",
        found=str(card["probe"])[:200],
        where=str(stem),
        next_step="install the package that adds it",
    )


def _registered_name(card: dict[str, Any]) -> str:
    """Return the name in a card; for a card from before names were registered, the name that its module and class have
    now.
    """
    if "class" not in card:
        return str(card["probe"])
    folder, name = registry.member_of(str(card["probe"]))
    titles = [f"{folder}:{name}{role}" for role in registry.ROLES]
    known = [title for title in titles if getattr(registry.class_of(title, "probes"), "__name__", "") == card["class"]]
    return known[0] if known else str(card["probe"])


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        raise BadParameter("half a saved probe", needed="the arrays beside the card", found="none", where=str(file))
    arrays: dict[str, NDArray[Any]] = load_file(file)
    return arrays


def _texts(texts: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return text arrays; labels that were objects come back as fixed-width text, equal in value."""
    arrays = {}
    for name, values in texts.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"text array {name!r} is not a list of strings")
        arrays[name] = np.array(values, dtype=np.str_)
    return arrays


def _damaged(file: Path, why: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        "not a readable saved probe", needed="files written by Probe.save", found=why, where=str(file)
    )
