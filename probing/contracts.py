"""The abstract classes: what can be plugged in. Read this first.

Shapes: N rows, D width, K classes, S sentences (clusters), T pieces, L layers, B batch, M label sets, R resamples.
A member is one file in its folder; the class to use is named in the file as `MEMBER`. The contract of
executors stands in `work.py`, which a worker process can import without anything heavy; that of analyses in
`analysing.py`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone

from probing import registry
from probing.corpus import Corpus, Example
from probing.design import Kind, Labels, Reading
from probing.whole_files import write_atomically

Floats = NDArray[np.floating[Any]]


class CorpusReader(ABC):
    """Reads one file (or hub data set) of one format into a corpus."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    numbers_documents_by_file: ClassVar[bool] = False  # True: document 1 of two files need not be one document

    @abstractmethod
    def read(self, source: str, *, split: str, **options: str) -> Corpus:
        """All examples of `source`, each in `split` ("": in the splits of its own, else `train`).

        Raises:
            CorpusError: missing, malformed or empty, with file and line.
        """


class Task(ABC):
    """Gives labels to words, spans, pairs of words or whole examples. `argument` follows the colon: `feature:Number`.

    Attributes:
        level: `word`, `span`, `pair` or `sentence` (which positions of a prompt are too).
        kind: of the target.
        reading: what makes the state of a row: `row`; of spans `mean` or `ends`; of pairs `pair`, `difference` or
            `product`.
        chooses: of pairs, whether those of one word a are alternatives, of which exactly one is right: labels are then
            `no` and `yes`.
        probes, controls, measures: what is used where the caller names none; empty: the defaults of the kind.
    """

    level: str
    kind: Kind
    reading: Reading = "row"
    chooses: ClassVar[bool] = False
    probes: ClassVar[tuple[str, ...]] = ()
    controls: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ()

    def __init__(self, argument: str = "") -> None:
        self.argument = argument

    @abstractmethod
    def prepare(self, corpus: Corpus) -> None:
        """Check that the corpus has what the task needs, and settle `level` and `kind`.

        Raises:
            UnknownName: no such column or feature, with the nearest name.
            DegenerateDesign: the column is entirely null.
        """

    @abstractmethod
    def labels(self, example: Example) -> tuple[Any, ...]:
        """One value per word or place (None: no label), or a 1-tuple at sentence level."""

    def places(self, example: Example) -> Sequence[tuple[int, int]] | NDArray[np.int64]:
        """Words that make the rows, counted from 0: of a span the first and the last, of a pair a and b."""
        return ()

    @property
    def read_from(self) -> str:
        """Rows of the store that its rows are made of: `word` or `sentence`."""
        return "sentence" if self.level == "sentence" else "word"


@dataclass(frozen=True)
class Prediction:
    """What a fitted probe says of N rows.

    Attributes:
        values: `(N,)` predicted class codes (int64) or real values (float64); of labels `(N, C)`, 0 or 1.
        log_probabilities: `(N, K)` natural logs, float64; None for regression or probes without probabilities. Of
            labels `(N, C, 2)`, of not having and having each.
        labels: the N rows themselves, for measures that compare rows of one sentence.
        tempered: the logs, of the same shape, as sure as dev bears out (`probing.tempering`), for measures that count
            bits; None: as sure as they are.
    """

    values: NDArray[Any]
    log_probabilities: NDArray[np.float64] | None = None
    labels: Labels | None = None
    tempered: NDArray[np.float64] | None = None

    @property
    def believed(self) -> NDArray[np.float64] | None:
        """What bits are counted of: the tempered logs, or the logs themselves where there are none."""
        return self.log_probabilities if self.tempered is None else self.tempered

    def take(self, rows: NDArray[Any]) -> Prediction:
        """The chosen rows, in the order given."""
        logs, labels, tempered = self.log_probabilities, self.labels, self.tempered
        return Prediction(
            self.values[rows], None if logs is None else logs[rows], None if labels is None else labels.take(rows),
            None if tempered is None else tempered[rows],
        )  # fmt: skip


class Probe(BaseEstimator, ABC):  # type: ignore[misc]
    """A scikit-learn estimator: configuration until `fit`. `check_estimator` passes for every member.

    Class attributes:
        kinds: the target kinds it can predict.
        reads: `states`; or `pieces` (of a piece store): then X is `design.Pieces`; or a key of `Labels.keys` such as
            `type`: then X is that key's codes, `(N, 1)`.
        reads_names: X is the key's strings instead of its codes, `(N, 1)` of dtype object.
        stochastic: whether two seeds can give two fits. If not, one fit serves every seed.
        predicts_most_probable: whether `predict` is always the argmax of `predict_log_proba`.
        readings: the readings of a task whose rows it can make sense of; empty: any.
        reads_pairs: whether it reads `Pairs` as they are; else they are laid out.
        reads_blocks: whether it reads `RowBlocks`, states that are streamed from the store; else they are read at once.

    Attributes:
        about: what a fit that `train` saved is of: task, site, model, labels, …; empty where nobody said.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    reads: ClassVar[str] = "states"
    reads_names: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    predicts_most_probable: ClassVar[bool] = False
    readings: ClassVar[tuple[Reading, ...]] = ()
    reads_pairs: ClassVar[bool] = False
    reads_blocks: ClassVar[bool] = False
    about: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on `(N, D)` states and `(N,)` labels; `dev` serves early stopping only."""

    @abstractmethod
    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """`(N,)` labels in the caller's own label values."""

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
        """Fit on the first `ends[b]` rows, rising, for every b: result[b][m][s], else as `fit_many`.

        The default fits each prefix anew; probes that can go on from the prefix before override it.
        """
        return [self.fit_many(X[:end], [y[:end] for y in targets], seeds, dev=dev) for end in ends]

    def with_seed(self, seed: int) -> Self:
        """An unfitted clone whose `random_state` (if it has one) is `seed`."""
        copy: Self = clone(self)
        if "random_state" in copy.get_params():
            copy.set_params(random_state=seed)
        return copy

    @abstractmethod
    def state(self) -> dict[str, NDArray[Any]]:
        """Fitted arrays by name, without the trailing underscore: with the parameters, all that `predict` needs."""

    @abstractmethod
    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Set fitted attributes from `state()` and return self."""

    def save(self, path: str | Path) -> None:
        """Write `path`.safetensors (arrays) and `path`.json (name and parameters), each whole. Never pickle."""
        stem = Path(path)
        for suffix, content in self.saved().items():
            write_atomically(stem.with_name(stem.name + suffix), content)

    def saved(self) -> dict[str, bytes]:
        """What `save` writes, by suffix.

        Raises:
            NotFittedError: not fitted yet.
            BadParameter: a probe that cannot be saved.
        """
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(array) for name, array in self.state().items()}
        texts = {name: array.tolist() for name, array in arrays.items() if array.dtype.kind in "UO"}
        card = {
            "probe": registry.name_of(type(self)) or f"{type(self).__module__}.{type(self).__name__}",
            "parameters": self.get_params(deep=False),
            "text": texts,
            "about": dict(self.about),
        }
        numbers = {name: array for name, array in arrays.items() if name not in texts}
        return {".safetensors": save(numbers), ".json": (json.dumps(card, sort_keys=True, indent=1) + "\n").encode()}


class Control(ABC):
    """Makes the labels of a control task from a task's: the same rows, classes and splits, other `y`.

    Controls that keep the labels and change the states are `probing.state_controls.StateControl`.

    Class attributes:
        is_selectivity: False: a chance check, never called selectivity.
        levels: levels of tasks it serves.
        answers: the objection that it answers, as one says it.
    """

    is_selectivity: ClassVar[bool] = True
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""

    @abstractmethod
    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Control labels of one draw, with `ceiling`, `seen` and `control` filled in.

        Raises:
            DegenerateDesign: no key to draw by, or fewer than two classes left.
        """

    def key_of(self, labels: Labels) -> str:
        """The key it draws by; rows without a value of it are left out of the task. Empty: none."""
        return ""


class Measure(ABC):
    """A score that is a function of sums of per-row statistics, so that one bootstrap serves every measure."""

    kinds: ClassVar[tuple[Kind, ...]]
    unit: ClassVar[str]  # "fraction" (0 to 1; gains have a margin of 0.02), "bits" (0.05); others, "R²" …: margin 0
    higher_is_better: ClassVar[bool] = True
    reads_probabilities: ClassVar[bool] = False  # True: only for probes that give probabilities
    counts_bits: ClassVar[bool] = False  # True: reads `Prediction.believed`
    needs_two_classes: ClassVar[bool] = False  # True: undefined on rows that all have one class

    def informed(self, labels: Labels) -> Measure:
        """This measure, told of all labels (train too) of the label set that it is to score; most need not know."""
        return self

    needs: ClassVar[str] = ""  # "pair" or "choice": only for tasks of such rows
    scores_parts: ClassVar[bool] = True  # False: rows of one sentence count together, so no part of them is scored

    @abstractmethod
    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """`(N, J)`: what of each row enters the score."""

    @abstractmethod
    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores `(...)` from sums `(..., J)` of the row statistics."""

    def value(self, y: NDArray[Any], prediction: Prediction) -> float:
        """The score on all rows."""
        return float(self.from_totals(self.row_statistics(y, prediction).sum(0)))

    def resampled(
        self, y: NDArray[Any], prediction: Prediction, groups: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """`(R,)` scores under cluster weights `(R, S)`; `groups` is `(N,)` in 0 … S-1."""
        rows = self.row_statistics(y, prediction)
        sums = np.stack([np.bincount(groups, column, weights.shape[1]) for column in rows.T], axis=1)
        return self.from_totals(weights @ sums)
