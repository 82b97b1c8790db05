"""Makes the Labels of a store's rows for a task: the target of every row, with all that controls and statistics need. A
*piece* is a token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from probing import registry
from probing.contracts.task import Task
from probing.errors import BadParameter, ProvenanceMismatch
from probing.labels import Labels
from probing.statistics.clusters import EVALUATED
from probing.text.corpus import SPLITS, Corpus, Example
from probing.text.example import as_input, connected, group_keys
from probing.training.label_checks import check_labels
from probing.training.places import Placed, is_punctuation, place_words
from probing.training.row_facts import codes_of, row_keys

CLUSTERS = ("auto", "sentence", "document")
NEARLY_CONSTANT = 0.5  # agreement beyond chance of two sentences of one unit from which it is what is resampled
Inputs = Mapping[int, tuple[int, str]]


def input_names(examples: Sequence[Example], *, of_chats: bool = False) -> list[str]:
    """Return a name for the input of each example, the same for equal inputs: its text and, with `of_chats`, all
    messages around it.
    """
    names = [as_input(e.text) for e in examples]
    if of_chats:
        names = [f"{name}\x1f{e.messages}" if e.messages else name for name, e in zip(names, examples, strict=True)]
    return names


def input_codes(corpus: Corpus, inputs: Inputs, *, of_chats: bool = False) -> Ints:
    """Return a code for each example, `(E,)`, the same for examples with the same input: with equal texts, or with
    equal pieces if the store recorded them.

    Args:
        corpus: the corpus of the store.
        inputs: by example ordinal, number of unknown pieces and hash of the piece ids, for inputs that have unknown
            pieces or were cut.
        of_chats: whether the texts were read within their chats.
    """
    pieces = [inputs[e][1] if e in inputs else None for e in range(len(corpus))]
    return connected(input_names(corpus.examples, of_chats=of_chats), pieces)


def with_fresh(labels: Labels, codes: Ints, also_trained: NDArray[np.bool_] | None = None) -> Labels:
    """Return the labels with `fresh` set: whether the input of each dev and test row does not occur in train.

    A score on rows whose input occurs in train may come from memory.

    Args:
        labels: labels of all rows.
        codes: `(E,)` codes of inputs, from `input_codes`.
        also_trained: `(E,)` whether another probe that is scored on these rows is trained on this input.
    """
    is_trained = np.isin(np.arange(len(codes)), labels.example[labels.rows("train")])
    is_trained = is_trained if also_trained is None else is_trained | also_trained
    fresh = ~np.isin(codes, codes[is_trained])[labels.example] | ~np.isin(labels.split, EVALUATED)
    return labels if fresh.all() else replace(labels, fresh=fresh)


def with_clusters(labels: Labels, corpus: Corpus, codes: Ints, resample_by: str) -> Labels:
    """Return the labels with `groups` and `unit` set to the requested unit; for `auto`, to the largest unit in which
    the label is constant.

    If the label is (nearly) constant within a unit, there are only as many observations as units, however many rows:
    rows of a document that share a label also share whatever a probe reads of the document. Copies of an input are
    always in one cluster.

    Raises:
        BadParameter: documents are asked for, but no example names one.
    """
    if resample_by == "document" and all(e.document is None for e in corpus.examples):
        raise BadParameter(
            "no example names its document",
            needed="a column `document` or `group`, or --group COLUMN",
            found="none",
            where=corpus.source,
            next_step="leave resample_by=document out: sentences are resampled",
        )
    constant = label_agreement(labels, corpus)
    by_document = resample_by == "document" or (resample_by == "auto" and constant >= NEARLY_CONSTANT)
    keys = [codes.tolist()] + ([group_keys(corpus.examples)] if by_document else [])
    return replace(
        labels,
        groups=connected(*keys)[labels.example],
        unit=corpus.unit if by_document else "sentence",
        unit_reason="asked for" if resample_by != "auto" else _reason(constant, corpus) if by_document else "",
    )


def _reason(agreement: float, corpus: Corpus) -> str:
    how = "is constant" if agreement >= 1 - 1e-9 else f"agrees by {agreement:.2f} beyond chance"
    return f"the label {how} within each {corpus.unit}"


def label_agreement(labels: Labels, corpus: Corpus) -> float:
    """Return by how much sentences of one document agree in their label more than by chance: 1 if the label is constant
    within documents, 0 if there are no documents.

    For classes it is (P − P₀) / (1 − P₀), with P the share of equal labels among pairs of rows from two sentences of
    one document, and P₀ that among all pairs. For numbers it is 1 − (mean squared difference within documents) / (mean
    squared difference over all pairs).
    """
    document = [e.document for e in corpus.examples]
    names = {name: code for code, name in enumerate(dict.fromkeys(document))}
    of_example = np.array([-1 if name is None else names[name] for name in document], dtype=np.int64)
    units = of_example[labels.example]
    rows = np.flatnonzero(units >= 0)
    if not len(rows):
        return 0.0
    units, sentences = units[rows], labels.example[rows]
    pairs = _pairs(units) - _pairs(sentences)
    if pairs <= 0:
        return 0.0
    if labels.kind == "real":
        x = np.asarray(labels.y[rows], dtype=np.float64) - labels.y[rows].mean()
        spread = float(x @ x) / len(x)
        return (_products(units, x) - _products(sentences, x)) / pairs / spread if spread else 0.0
    codes = np.unique(labels.codes[rows], return_inverse=True)[1].reshape(-1)
    shares = np.bincount(codes) / len(codes)
    chance = float(shares @ shares)
    equal = (_equal_pairs(units, codes) - _equal_pairs(sentences, codes)) / pairs
    return (equal - chance) / (1 - chance) if chance < 1 else 0.0


def _pairs(codes: Ints) -> float:
    """Return how many ordered pairs of rows, a row with itself included, share a code."""
    counts = np.bincount(np.unique(codes, return_inverse=True)[1].reshape(-1)).astype(np.float64)
    return float(counts @ counts)


def _equal_pairs(units: Ints, codes: Ints) -> float:
    return _pairs(units * (int(codes.max()) + 1) + codes)


def _products(units: Ints, x: NDArray[np.float64]) -> float:
    """Return the sum over ordered pairs of rows of one unit of the product of their values."""
    sums = np.bincount(np.unique(units, return_inverse=True)[1].reshape(-1), x)
    return float(sums @ sums)


Ints = NDArray[np.int64]


class RowTable(Protocol):
    """Gives the columns of a store's R rows that labelling uses."""

    @property
    def example(self) -> Ints:
        """Ordinal of the row's example in the corpus, `(R,)`."""

    @property
    def word(self) -> Ints:
        """Index of the row's word in its example, `(R,)`; -1 for none."""


def label_rows(
    rows: RowTable,
    scope: str,
    corpus: Corpus,
    task: Task,
    *,
    resample_by: str = "auto",
    inputs: Inputs | None = None,
    of_chats: bool = False,
    trained: Collection[str] = (),
) -> Labels:
    """Give every row of a store its label and return the labels; rows without a label are left out and counted.

    Args:
        rows: the store's rows.
        scope: what a row is: `word`, `sentence`, `piece`, or `position` (a single one, with one row per example).
        corpus: the corpus the store was made from.
        task: the task that gives the labels; its `prepare` is called here.
        resample_by: the unit of `Labels.groups`: `sentence`, `document` (or group), or `auto`: the document if the
            label is constant within documents, else the sentence.
        inputs: by example ordinal, number of unknown pieces and hash of the piece ids, for inputs that have unknown
            pieces or were cut.
        of_chats: whether the texts were read within their chats.
        trained: names (from `input_names`) of further inputs on which probes that are scored here are trained.

    Raises:
        BadParameter: the rows are of another level than the task, or `resample_by` is unknown.
        DegenerateDesign: nothing can be learned from the labels, or a score on them would be meaningless.
        ProvenanceMismatch: rows point outside the corpus.
    """
    task.prepare(corpus)
    name = task_name(task)
    _check_level(task, name, scope, resample_by)
    is_placed = task.level in ("span", "pair")
    position = _positions(rows, corpus, task.read_from)
    placed = place_words(corpus, task, name, position) if is_placed else _labelled(rows, corpus, task, position)
    example = placed.example
    y, classes = _targets(placed.values, task.kind)
    split = _per_example([e.split for e in corpus.examples], example)
    keys, key_names = row_keys(corpus, placed, task.level)
    labels = Labels(
        task=name,
        kind=task.kind,
        y=y,
        classes=classes,
        split=split,
        groups=example.copy(),
        example=example,
        word=placed.word,
        row=placed.row,
        keys=keys,
        key_names=key_names,
        excluded=placed.excluded,
        row_form=task.row_form,
        other_word=placed.other_word,
        other_row=placed.other_row,
        choice=placed.choice,
        punctuation=is_punctuation(corpus, placed) if task.level == "pair" else None,
        texts=np.array([e.text for e in corpus.examples], dtype=object)[example] if "text" in keys else None,
    )
    check_labels(labels, corpus)
    same = input_codes(corpus, inputs or {}, of_chats=of_chats)
    others = np.isin(input_names(corpus.examples, of_chats=of_chats), list(trained)) if trained else None
    return with_clusters(with_fresh(labels, same, others), corpus, same, resample_by)


def task_name(task: Task) -> str:
    """Return the name of a task as users write it, such as `feature:Number`."""
    name = registry.member_name(type(task))
    return f"{name}:{task.argument}" if task.argument else name


def _check_level(task: Task, name: str, scope: str, resample_by: str) -> None:
    if resample_by not in CLUSTERS:
        raise BadParameter("unknown resampling unit", needed="auto, sentence or document", found=repr(resample_by))
    if task.read_from != ("sentence" if scope == "position" else scope):
        wanted = f"{task.read_from}:mean"
        raise BadParameter(
            f"task {name} labels {task.level}s, the store's rows are {scope}s",
            needed=f"{task.read_from} rows",
            found=f"{scope} rows",
            next_step=f'extract again with rows {wanted} (rows="{wanted}", --rows {wanted}) to another folder',
        )


def _labelled(rows: RowTable, corpus: Corpus, task: Task, position: Ints) -> Placed:
    """Return store rows with a label in train, dev or test, their values, and the count of the others by reason."""
    example = np.asarray(rows.example)
    values = [value for e in corpus.examples for value in _values_of(task, e)]
    has_label = np.fromiter((value is not None for value in values), bool, len(values))[position]
    split = _per_example([e.split for e in corpus.examples], example)
    in_split = np.isin(split, SPLITS)
    kept = np.flatnonzero(has_label & in_split)
    excluded = Counter(f"split {name}" for name in split[~in_split].tolist())
    excluded["no label"] = int((~has_label & in_split).sum())
    found = [values[p] for p in position[kept].tolist()]
    reasons = {reason: n for reason, n in excluded.items() if n}
    return Placed(found, example[kept], np.asarray(rows.word)[kept], kept, reasons)


def _values_of(task: Task, example: Example) -> tuple[Any, ...]:
    values = task.labels(example)
    expected = len(example.words) if task.level == "word" else 1
    if len(values) != expected:
        raise BadParameter(
            f"task {task_name(task)} gives the wrong number of labels",
            needed=str(expected),
            found=str(len(values)),
            where=f"sentence {example.id}",
            next_step="correct the task's `labels`: None where there is no label",
        )
    return values


def _positions(rows: RowTable, corpus: Corpus, level: str) -> Ints:
    """Return the index of each row's label when the labels of all examples are laid end to end, `(R,)`."""
    example, word = np.asarray(rows.example), np.asarray(rows.word)
    sizes = np.array([len(e.words) if level == "word" else 1 for e in corpus.examples], dtype=np.int64)
    inside = bool(((example >= 0) & (example < len(corpus))).all())
    offset = word if level == "word" else np.zeros_like(example)
    if not (inside and ((offset >= 0) & (offset < sizes[example])).all()):
        raise ProvenanceMismatch(
            "the store has rows that this corpus has not",
            needed="the corpus the store was made from",
            found=f"a corpus of {len(corpus)} examples",
            where=corpus.source,
            next_step="give the same files, in the same order, as for `probing extract`",
        )
    return (np.cumsum(sizes) - sizes)[example] + offset


def _targets(values: list[Any], kind: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    if kind == "real":
        return np.array(values, dtype=np.float64), ()
    return _label_sets(values) if kind == "labels" else codes_of(values)


def _label_sets(values: list[tuple[str, ...]]) -> tuple[Ints, tuple[str, ...]]:
    """Return 1 where the row has the label, else 0, `(N, C)`, and the names of the labels."""
    codes, names = codes_of([name for found in values for name in found])
    y = np.zeros((len(values), len(names)), dtype=np.int64)
    y[np.repeat(np.arange(len(values)), [len(found) for found in values]), codes] = 1
    return y, names


def _per_example(values: Sequence[str], example: Ints) -> NDArray[np.str_]:
    return np.array(values, dtype=np.str_)[example] if len(values) else np.zeros(0, dtype=np.str_)
