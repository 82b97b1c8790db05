"""Fits probes on arrays in memory (states, labels, groups and keys) in the same way as on a store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from probing._renamed import takes_old_names
from probing.contracts.analysis import Analysis
from probing.contracts.control import Control, StateControl
from probing.contracts.measure import Measure
from probing.errors import BadParameter, DegenerateDesign
from probing.models.site import Site
from probing.provenance import digest
from probing.statistics.multiplicity import Correction
from probing.text.corpus import SPLITS, Corpus, Example, Label
from probing.text.example import first_crossing, named
from probing.text.sources import split_name
from probing.training import train
from probing.training.array_checks import (
    check_order,
    check_rounding,
    check_types,
    refuse_other_values,
    warn_of_constant,
    warn_of_copies,
)
from probing.training.array_words import in_terms_of_arrays
from probing.training.results import ProbeResults

Ints = NDArray[np.int64]
SITE, KEY, GROUP = "states", "key", "group"
_KINDS = ("auto", "classes", "real")


@takes_old_names
def probe(
    X: Any,
    y: Any,
    *,
    groups: Any = None,
    keys: Any = None,
    texts: Sequence[str] | None = None,
    split: Any = None,
    split_seed: int = 0,
    kind: Literal["auto", "classes", "real"] = "auto",
    name: str = "y",
    model: str | None = None,
    probes: Sequence[str | BaseEstimator] | None = None,
    controls: Sequence[str | Control | StateControl] | None = None,
    measures: Sequence[str | Measure] | None = None,
    analyses: Sequence[str | Analysis] = (),
    seeds: int = 1,
    root_seed: int = 0,
    correction: Correction = "holm",
    to: str | Path | None = None,
    replace: bool = False,
    max_memory_mib: int | None = None,
    progress: bool = True,
) -> ProbeResults:
    """Fit probes on arrays beside controls and baselines, score them, and return the results with their verdicts; no
    store is needed.

    The results are the numbers that `train` gives for a store with the same rows, with the same tables and charts. With
    `keys`, each row is treated as a word in the sentence that is its group, and its key as the word's form: the default
    control draws a random label for each key, and the baseline `word_type` predicts from the key alone. Without keys,
    each row is treated as a sentence, and the default control is a chance check.

    Rows belong together by position, as in scikit-learn. Of pandas objects the index is looked at, too: where two of
    them have the same index labels in another order, pandas would align them and scikit-learn would not, so that they
    are refused. Indexes with other labels (one of them reset, say) are taken by position.

    Args:
        X: states `(N, D)` as array, tensor or DataFrame, converted to float32; or `{site: states}`, several layers of
            the same rows, such as `{"resid.3": X3, "resid.6": X6}`.
        y: `(N,)` labels, classes or numbers; None and NaN are missing, and such rows are left out. A number and a text
            that is written alike, such as 1 and "1", would be one class, and are refused.
        groups: `(N,)` names of groups that splits and resampling never divide: sentences, documents, speakers. None:
            every row is a group. Rows with the same input must share a group, since arrays do not show which inputs are
            equal; equal states in train and test are warned of.
        keys: `(N,)` values for each of which the control draws one random label, such as the form of each word.
        texts: `(N,)` the text of each row, if rows are texts. Baselines then read them, copies of a text are never in
            different splits, and the control `keyed:key=key` draws one label for each value of `keys`.
        split: `(N,)` the split of each row: `train`, `dev` (or `validation`) or `test`. None means that whole groups
            are assigned at random, in proportions of 80/10/10.
        split_seed: seed of that random split.
        kind: whether labels are `classes` or `real` numbers; `auto` takes numbers as real if some are not whole numbers
            or there are more than 20 different ones.
        name: name of the property, for tables and messages.
        model: name of the source of the states, which is recorded with the results and tells runs in one folder apart;
            None: `arrays`, with the number of rows and the beginning of a hash of the states.
        probes, controls, measures, analyses, seeds, root_seed, correction, to, replace, max_memory_mib, progress: as
            for `train`.

    Raises:
        BadParameter: the shapes of arrays do not match, pandas objects have the same index in another order, labels of
            y, groups or keys differ in nothing but their type, y holds dates or complex numbers, float32 does not hold
            the states, or a name or parameter is wrong.
        DegenerateDesign: nothing can be learned from the labels, a split has no rows, or a group is in two splits.
        CorpusError: there are fewer than three groups to split.
        NonFiniteStates: states are NaN or infinite; the message names site and rows.
    """
    states = _states(X)
    count = len(next(iter(states.values())))
    if kind not in _KINDS:
        raise BadParameter("unknown kind of labels", needed=", ".join(_KINDS), found=repr(kind))
    if not name or ":" in name or name == KEY:
        raise BadParameter("a name that cannot be asked for", needed="a name without a colon", found=repr(name))
    beside = {"y": y, "groups": groups, "keys": keys, "texts": texts, "split": split}
    check_order({**({f"X, {site}": one for site, one in X.items()} if isinstance(X, Mapping) else {"X": X}), **beside})
    refuse_other_values(y)
    given = {label: None if values is None else _plain(values, count, label) for label, values in beside.items()}
    for label in ("y", "groups", "keys"):
        check_types(given[label] or (), label)
    with in_terms_of_arrays():
        columns = _Columns(name=name, **given)
        corpus, rows = columns.words() if columns.are_words else columns.sentences()
        corpus = corpus.with_random_split(split_seed) if split is None else _checked(corpus)
        is_constant = warn_of_constant(states)
        if keys is None and texts is None and not is_constant:
            warn_of_copies(states, [example.split for example in corpus.examples])
        if controls is None and keys is not None and not columns.are_words:
            controls = [f"keyed:key={KEY}"]
        store: Any = ArrayStore(states, rows, corpus, model, "word:given" if columns.are_words else "sentence:given")
        return train(
            store,
            corpus,
            task=f"column:{name}" if kind == "auto" else f"column:{name}:{kind}",
            probes=probes,
            controls=controls,
            measures=measures,
            analyses=analyses,
            seeds=seeds,
            root_seed=root_seed,
            resample_by="auto" if groups is None else "document",
            correction=correction,
            to=to,
            replace=replace,
            max_memory_mib=max_memory_mib,
            progress=progress,
        )


def _states(X: Any) -> dict[str, NDArray[np.float32]]:
    """Return the states of each site as float32 `(N, D)`."""
    given = X if isinstance(X, Mapping) else {SITE: X}
    found = {str(Site.parse(str(site))): _matrix(values, str(site)) for site, values in given.items()}
    counts = {site: len(values) for site, values in found.items()}
    if len(set(counts.values())) != 1:
        raise BadParameter("sites with different numbers of rows", needed="one number", found=str(counts)[:200])
    return found


def _matrix(values: Any, site: str) -> NDArray[np.float32]:
    """Return states as float32 `(N, D)`.

    Raises:
        BadParameter: they are no matrix of numbers, or float32 does not hold what tells its rows apart.
    """
    where = f"X, {site}"
    if hasattr(values, "detach"):  # a tensor of any type and device
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() and values.element_size() < 4 else values).numpy()
    try:
        if np.ma.isMaskedArray(values) or hasattr(values, "toarray"):
            raise TypeError("a masked or sparse array: give what it holds, as an array without a mask")
        matrix = np.asarray(values)
        if matrix.dtype.kind == "c":
            raise TypeError("complex numbers: give real and imaginary parts as columns of their own")
        if matrix.dtype.kind not in "fiub":
            matrix = matrix.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise BadParameter("states are not numbers", found=str(error)[:200], where=where) from None
    if matrix.ndim != 2 or not matrix.size:
        raise BadParameter(
            "states of another shape", needed="(N, D), a row for each label", found=str(matrix.shape), where=where
        )
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(matrix, np.float32)
    if matrix.dtype.itemsize > narrow.dtype.itemsize or matrix.dtype.kind in "iu":
        check_rounding(matrix, narrow, where)
    return narrow


def _plain(values: Any, count: int, name: str) -> list[Any]:
    """Return a column as a list of Python's own values, with None for NaN."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    shape = tuple(getattr(values, "shape", ()))
    if len(shape) > 1 or isinstance(values, Set | Mapping):
        found = f"an array {shape}" if shape else f"a {type(values).__name__}, which has no order of rows"
        raise BadParameter(f"{name} does not fit the states", needed=f"{count:,} values, in one dimension", found=found)
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(listed) != count or any(isinstance(value, list | tuple | dict) for value in listed):
        raise BadParameter(
            f"{name} does not fit the states",
            needed=f"{count:,} values, one for each row of X",
            found=f"{len(listed):,}" if len(listed) != count else "several values in a row",
        )
    return [None if value != value else value for value in map(_of_python, listed)]


def _of_python(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return (
        value
        if isinstance(value, str | int | float | None)
        else None
        if type(value).__name__ == "NAType"
        else str(value)
    )


class _Columns:
    """The columns beside the states, each a list of N values or None."""

    def __init__(
        self,
        *,
        name: str,
        y: list[Any] | None,
        groups: list[Any] | None,
        keys: list[Any] | None,
        texts: list[Any] | None,
        split: list[Any] | None,
    ) -> None:
        self.name, self.y, self.keys, self.texts = name, y or [], keys, texts
        self.groups = None if groups is None else [named(group) for group in groups]
        self.split = [split_name(str(one)) for one in split] if split is not None else ["train"] * len(self.y)
        self.are_words = keys is not None and texts is None

    def sentences(self) -> tuple[Corpus, SimpleNamespace]:
        """Return a corpus in which every row is an example, and where each row lies in it."""
        n = len(self.y)
        groups = self.groups or [None] * n
        if self.texts is not None and not all(isinstance(text, str) and text.strip() for text in self.texts):
            at = next(i for i, text in enumerate(self.texts) if not (isinstance(text, str) and text.strip()))
            raise BadParameter("a row without text", needed="a text for each row", found=f"none in row {at}")
        examples = [
            Example(
                id=f"row {i}",
                text=f"row {i}" if self.texts is None else self.texts[i],
                columns={self.name: self.y[i]} | ({} if self.keys is None else {KEY: named(self.keys[i])}),
                document=groups[i],
                split=self.split[i],
            )
            for i in range(n)
        ]
        return self._corpus(examples), _rows(np.arange(n), np.full(n, -1))

    def words(self) -> tuple[Corpus, SimpleNamespace]:
        """Return a corpus in which every group is an example, its rows the words, and where each row lies in it.

        Raises:
            BadParameter: a row has no key.
            DegenerateDesign: a group is in two splits.
        """
        self.keys = [named(key) for key in self.keys or ()]
        if None in self.keys:
            raise BadParameter(
                "a row without a key",
                needed="a key for each row",
                found=f"none in row {self.keys.index(None)}",
                next_step="fill it in, or leave the row out",
            )
        groups = self.groups or [None] * len(self.y)
        names = [f"row {i}" if group is None else group for i, group in enumerate(groups)]
        crossing = first_crossing(zip(names, self.split, strict=True))
        if crossing:
            raise _crosses(*crossing)
        of_group: dict[str, list[int]] = {}
        for i, group in enumerate(names):
            of_group.setdefault(group, []).append(i)
        example, word = np.zeros(len(self.y), np.int64), np.zeros(len(self.y), np.int64)
        examples = []
        for ordinal, (group, members) in enumerate(of_group.items()):
            example[members], word[members] = ordinal, np.arange(len(members))
            examples.append(
                self._group(group, members, is_named=self.groups is not None and groups[members[0]] is not None)
            )
        return self._corpus(examples), _rows(example, word)

    def _group(self, group: str, members: list[int], *, is_named: bool) -> Example:
        forms = [str((self.keys or [])[i]) for i in members]
        ends = np.cumsum([len(form) + 1 for form in forms]).tolist()
        labels: tuple[Label, ...] = tuple(self.y[i] for i in members)
        # The end of the text, which no word covers, tells it from other groups with the same keys.
        return Example(
            id=group,
            text=f"{' '.join(forms)} ({group})",
            words=tuple((end - len(form) - 1, end - 1) for form, end in zip(forms, ends, strict=True)),
            word_columns={self.name: labels},
            document=group if is_named else None,
            split=self.split[members[0]],
        )

    def _corpus(self, examples: list[Example]) -> Corpus:
        unit = "document" if self.groups is None else GROUP
        return Corpus(tuple(examples), "arrays", unit, has_texts=self.texts is not None)


def _rows(example: Ints, word: Ints) -> SimpleNamespace:
    return SimpleNamespace(example=example.astype(np.int64), word=word.astype(np.int64))


def _checked(corpus: Corpus) -> Corpus:
    """Return a corpus with rows in train, dev and test.

    Raises:
        DegenerateDesign: it has none in one of them, or a group is in two.
    """
    missing = [split for split in SPLITS if split not in corpus.splits]
    if missing:
        raise DegenerateDesign(
            f"no rows in {' and '.join(missing)}",
            needed="rows in train, dev and test: a site is chosen on dev, and judged on test",
            found=f"split has {', '.join(corpus.splits)}",
            next_step="call a tenth of the groups dev, or leave split out: it is made at random of whole groups",
        )
    crossing = first_crossing((e.document, e.split) for e in corpus.examples if e.document is not None)
    if crossing:
        raise _crosses(*crossing)
    return corpus


def _crosses(group: str, here: str, there: str) -> DegenerateDesign:
    return DegenerateDesign(
        "a group crosses splits",
        needed="every group in one split",
        found=f"{group!r} in {here} and {there}",
        next_step="correct the splits, or leave split out: it is made at random of whole groups",
    )


class ArrayStore:
    """Presents arrays in memory as a store, with what training reads of one.

    Attributes:
        sites, rows, identity, environment, store_id, content_id, path: see `Store`; the content id is the hash of all
            states.
    """

    unknown_pieces: float | None = None
    cut_inputs = np.empty(0, np.int64)  # arrays do not tell
    max_length: int | None = None

    def __init__(
        self,
        states: Mapping[str, NDArray[np.float32]],
        rows: SimpleNamespace,
        corpus: Corpus,
        model: str | None,
        scope: str,
    ) -> None:
        self._states = states
        self.rows = rows
        self.sites = tuple(sorted(states, key=lambda site: Site.parse(site).order))
        self.path = "arrays"
        self.inputs: dict[int, tuple[int, str]] = {}
        self.content_id = digest({site: hashlib.sha256(states[site].data).hexdigest() for site in self.sites})
        self.identity: dict[str, Any] = {
            "model": {"source": model or f"arrays [{len(rows.word):,} rows, {self.content_id[:8]}]"},
            "corpus": {"fingerprint": corpus.fingerprint, "source": corpus.source},
            "extraction": {"rows": scope, "sites": list(self.sites), "dtype": "float32"},
        }
        self.environment = {"imported": {"from": "arrays", "format": "array", "provenance": "unknown"}}
        self.store_id = digest(self.identity)

    def width(self, site: str) -> int:
        """Return the number of features at a site."""
        return int(self._states[site].shape[1])

    def read(self, site: str, rows: Ints | None = None) -> NDArray[np.float32]:
        """Return the states `(N, D)` float32 of these rows; None: of all rows."""
        return self._states[site] if rows is None else self._states[site][rows]
