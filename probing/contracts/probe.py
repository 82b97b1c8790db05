"""Defines `Probe`, the base class of probes: scikit-learn estimators that save themselves without pickle."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy as shallow
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.base import BaseEstimator, clone

from probing import registry
from probing.errors import BadParameter, OldAttributes
from probing.files.whole_files import write_atomically
from probing.labels import Kind, RowForm


class Probe(OldAttributes, BaseEstimator, ABC):  # type: ignore[misc]
    """Base class of probes: scikit-learn estimators, which hold only their options before `fit`. `check_estimator`
    passes for every one in `probes/`.

    Class attributes:
        kinds: kinds of labels that it can predict: `classes`, `real` numbers, or `labels` (several for each row).
        input: what `fit` is given as X: `states`; `pieces`, the states of all tokens of each row (X is then
            `labels.Pieces`); or another field of the rows, such as `type`, the word form (X is then integer codes of
            its values, `(N, 1)`).
        input_as_text: whether X holds the values of that field as strings instead of codes, `(N, 1)` of dtype object.
        stochastic: whether fits with different seeds can differ. If not, one fit is used for all seeds.
        predicts_most_probable: whether `predict` is always the argmax of `predict_log_proba`.
        row_forms: the forms of rows (`Task.row_form`) that it can be fitted on; empty means any.
        accepts_pairs: whether `fit` takes pairs of words as `Pairs`; otherwise it is given one matrix.
        accepts_blocks: whether `fit` takes `RowBlocks`, states streamed from the store; otherwise it is given all
            states in memory.
        is_linear: whether its scores are a linear function of one state a row (or of the word, or of counts). Beside a
            probe of texts that is not, a baseline is fitted that combines words as no linear one does, `text_mlp`.
        accepts_device: whether it computes on the device that `on` names; otherwise it computes on the CPU.

    Attributes:
        device: torch device that `fit` computes on. It is not a parameter and is not saved, since results are equal up
            to rounding.
        about: for a probe that `train` saved, its task, site, model, labels and so on; empty otherwise.
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
    is_linear: ClassVar[bool] = True
    accepts_device: ClassVar[bool] = False
    device: str = "cpu"
    about: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on states X `(N, D)` and labels y `(N,)`, and return self. `dev` is a pair of held-out states and labels:
        it serves to stop early or to record scores, and no weights are fitted on it.
        """

    @abstractmethod
    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the labels `(N,)` predicted for states X `(N, D)`, in the label values that `fit` was given."""

    def fit_many(
        self,
        X: NDArray[np.float32],
        targets: Sequence[NDArray[Any]],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[Self]]:
        """Fit one probe for each of M arrays of labels (`targets`, each `(N,)`) and each seed, all on the same X, and
        return them as lists: `result[m][s]` is fitted on `targets[m]` with `seeds[s]`. `dev` is a pair: held-out
        states, and M arrays of their labels.

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
        """Fit on the first `ends[b]` rows for every b and return the probes as `result[b][m][s]`, for labels
        `targets[m]` and seed `seeds[s]`; `ends` is increasing. The other arguments are those of `fit_many`.

        The default fits each prefix anew; probes that can start from the fit of the prefix before override it.
        """
        return [self.fit_many(X[:end], [y[:end] for y in targets], seeds, dev=dev) for end in ends]

    def with_seed(self, seed: int) -> Self:
        """Return an unfitted clone whose `random_state` (if it has one) is `seed`."""
        seeded: Self = clone(self)
        if "random_state" in seeded.get_params():
            seeded.set_params(random_state=seed)
        return seeded.on(self.device)

    def on(self, device: str) -> Self:
        """Return a copy of this probe whose `fit` computes on a torch device; if the probe cannot (see
        `accepts_device`) or does so already, the probe itself.
        """
        if not self.accepts_device or device == self.device:
            return self
        moved = shallow(self)
        moved.device = device
        return moved

    @abstractmethod
    def state(self) -> dict[str, NDArray[Any]]:
        """Return, by name, the fitted arrays that `predict` needs beside the parameters: the attribute `coef_` has the
        name `coef`.
        """

    @abstractmethod
    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Set the fitted attributes from the arrays that the method `state` returned, and return self."""

    def __repr__(self, *arguments: Any, **options: Any) -> str:
        if not self.about.get("site"):
            shown: str = super().__repr__(*arguments, **options)
            return shown
        about = self.about
        labels = list(map(str, about.get("labels") or ()))
        said = f": {', '.join(labels[:4])}" + (", …" if len(labels) > 4 else "") if labels else ""
        name = f"{about.get('task')} by {about.get('probe')} at {about['site']}{said}"
        return f"<{type(self).__name__} of {name}; {about.get('rows')}, {about.get('model')}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a saved probe's card, otherwise scikit-learn's drawing of the estimator."""
        is_saved = bool(self.about.get("site"))
        shown: str = import_module("probing.reporting.plots").probe_card(self) if is_saved else self._html_repr()
        return shown

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def save(self, path: str | Path) -> None:
        """Write the fitted arrays to `path`.safetensors, and the probe's name and parameters to `path`.json. Each file
        is written whole or not at all, and never as pickle.
        """
        stem = Path(path)
        for suffix, content in self.saved().items():
            write_atomically(stem.with_name(stem.name + suffix), content)

    def saved(self) -> dict[str, bytes]:
        """Return the content of the files that `save` writes: a mapping from the suffix to bytes.

        Raises:
            NotFittedError: the probe is not fitted.
            BadParameter: the probe cannot be saved.
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


class StoredStates(Protocol):
    """Lists the methods of a store of hidden states that `RowBlocks` needs."""

    n_rows: int

    def width(self, site: str) -> int:
        """Return the number of features of a site's states."""

    def read(self, site: str, rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Return the states `(N, D)` of these rows; None: of all rows."""

    def blocks(
        self, site: str, rows: NDArray[np.int64] | None, *, block_rows: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield the states of these rows (None: of all) in blocks of at most `block_rows`, as (row numbers, states `(n,
        D)`).
        """


class RowBlocks:
    """Gives the states `(N, D)` of one site block by block, so that they are never all in memory; `LinearProbe` and
    `RidgeProbe` can train on them.

    Args:
        store: the store that holds the states.
        site: name of a site of the store.
        rows: `(N,)` row numbers of the store, in the order of the labels; None means all rows.
        budget: bytes of memory that a fit on these rows may take, not counting its weights and the interpreter.

    Raises:
        UnknownSite: the store has no such site; the message names the nearest.
        BadParameter: `budget` is below 16 MiB.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(
        self, store: StoredStates, site: str, rows: NDArray[np.int64] | None = None, *, budget: int = 2**29
    ) -> None:
        if budget < 2**24:
            raise BadParameter("too small a budget to train in", needed="16777216 bytes or more", found=str(budget))
        self.store, self.site, self.rows, self.budget = store, site, rows, budget
        self.shape = (store.n_rows if rows is None else len(rows), store.width(site))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def fits(self) -> bool:
        """Whether three copies of all rows fit into the memory budget (`budget`); if so, a fit reads the rows once and
        holds them in memory.
        """
        return 3 * self.dtype.itemsize * self.shape[0] * self.shape[1] <= self.budget

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the rows in order, block by block, as pairs (index of the first row, states `(n, D)`); a block has at
        most 8,192 rows and takes at most 1/32 of the memory budget (`budget`).
        """
        most = max(1, min(8192, self.budget // (32 * self.dtype.itemsize * max(1, self.shape[1]))))
        start = 0
        for _, states in self.store.blocks(self.site, self.rows, block_rows=most):
            yield start, states
            start += len(states)

    def head(self, end: int) -> RowBlocks:
        """Return blocks of the first `end` rows only."""
        part = shallow(self)
        part.rows = (np.arange(len(self)) if self.rows is None else self.rows)[:end]
        part.shape = (len(part.rows), self.shape[1])
        return part

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all rows at once as an array."""
        states = self.store.read(self.site, self.rows)
        return states if dtype is None else states.astype(dtype, copy=False)
