"""Probe: the contract of probes, scikit-learn estimators that save themselves without pickle."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone

from probing import registry
from probing.errors import OldAttributes
from probing.files.whole_files import write_atomically
from probing.labels import Kind, RowForm


class Probe(OldAttributes, BaseEstimator, ABC):  # type: ignore[misc]
    """A scikit-learn estimator: only configuration until `fit`. `check_estimator` passes for every member.

    Class attributes:
        kinds: the target kinds it can predict.
        input: what X is: `states`; or `pieces` (of a piece store): then X is `labels.Pieces`; or a key of `Labels.keys`
            such as `type`: then X is that key's codes, `(N, 1)`.
        input_as_text: X is the key's strings instead of its codes, `(N, 1)` of dtype object.
        stochastic: whether two seeds can give two fits. If not, one fit serves every seed.
        predicts_most_probable: whether `predict` is always the argmax of `predict_log_proba`.
        row_forms: the forms of rows (`Task.row_form`) that it can make sense of; empty: any.
        accepts_pairs: whether it takes `Pairs` as they are; else they are laid out.
        accepts_blocks: whether it takes `RowBlocks`, states that are streamed from the store; else it gets all at once.

    Attributes:
        about: what a fit that `train` saved is of: task, site, model, labels, …; empty where it is not known.
    """

    _before: ClassVar[Mapping[str, str]] = {
        "reads": "input",
        "reads_names": "input_as_text",
        "readings": "row_forms",
        "reads_pairs": "accepts_pairs",
        "reads_blocks": "accepts_blocks",
    }
    kinds: ClassVar[tuple[Kind, ...]]
    input: ClassVar[str] = "states"
    input_as_text: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    predicts_most_probable: ClassVar[bool] = False
    row_forms: ClassVar[tuple[RowForm, ...]] = ()
    accepts_pairs: ClassVar[bool] = False
    accepts_blocks: ClassVar[bool] = False
    about: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on `(N, D)` states and `(N,)` labels; `dev` serves early stopping only."""

    @abstractmethod
    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the predicted labels `(N,)`, in the caller's own label values."""

    def fit_many(
        self,
        X: NDArray[np.float32],
        targets: Sequence[NDArray[Any]],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[Self]]:
        """Fit every label set of `targets` (M of `(N,)`) under every seed on one X: result[m][s].

        The default is a loop over clones; probes that can share work override it. `self` is never fitted.
        """
        fits: list[list[Self]] = []
        for m, y in enumerate(targets):
            held_out = None if dev is None else (dev[0], dev[1][m])
            fits.append([self.with_seed(seed).fit(X, y, dev=held_out) for seed in seeds])
        return fits

    def fit_prefixes(
        self,
        X: NDArray[np.float32],
        targets: Sequence[NDArray[Any]],
        ends: Sequence[int],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[list[Self]]]:
        """Fit on the first `ends[b]` rows, rising, for every b: result[b][m][s]; otherwise as `fit_many`.

        The default fits each prefix anew; probes that can go on from the prefix before override it.
        """
        return [self.fit_many(X[:end], [y[:end] for y in targets], seeds, dev=dev) for end in ends]

    def with_seed(self, seed: int) -> Self:
        """Return an unfitted clone whose `random_state` (if it has one) is `seed`."""
        copy: Self = clone(self)
        if "random_state" in copy.get_params():
            copy.set_params(random_state=seed)
        return copy

    @abstractmethod
    def state(self) -> dict[str, NDArray[Any]]:
        """Return the fitted arrays by name, without the trailing underscore: with the parameters, all that `predict`
        needs.
        """

    @abstractmethod
    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Set fitted attributes from `state()` and return self."""

    def save(self, path: str | Path) -> None:
        """Write `path`.safetensors (arrays) and `path`.json (name and parameters), each whole. Never pickle."""
        stem = Path(path)
        for suffix, content in self.saved().items():
            write_atomically(stem.with_name(stem.name + suffix), content)

    def saved(self) -> dict[str, bytes]:
        """Return the files that `save` writes, as bytes by suffix.

        Raises:
            NotFittedError: not fitted yet.
            BadParameter: a probe that cannot be saved.
        """
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(array) for name, array in self.state().items()}
        texts = {name: array.tolist() for name, array in arrays.items() if array.dtype.kind in "UO"}
        card = {
            "probe": registry.identity_of(type(self)),
            "parameters": self.get_params(deep=False),
            "text": texts,
            "about": dict(self.about),
        }
        numbers = {name: array for name, array in arrays.items() if name not in texts}
        return {".safetensors": save(numbers), ".json": (json.dumps(card, sort_keys=True, indent=1) + "\n").encode()}
