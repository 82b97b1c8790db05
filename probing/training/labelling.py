"""Makes Labels of the rows of a store and a task: the target of every row, with all that controls and statistics
need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from probing import registry
from probing.contracts.task import Task
from probing.errors import BadParameter, ProvenanceMismatch
from probing.labels import Labels
from probing.text.corpus import SPLITS, Corpus, Example
from probing.training.clusters import (
    CLUSTERS,
    Inputs,
    input_codes,
    input_names,
    with_clusters,
    with_fresh,
)
from probing.training.label_checks import check_labels
from probing.training.places import Placed, is_punctuation, place_words
from probing.training.row_keys import codes_of, row_keys

Ints = NDArray[np.int64]


class RowTable(Protocol):
    """The columns of a store's R rows that labelling needs."""

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
    cluster: str = "auto",
    inputs: Inputs | None = None,
    of_chats: bool = False,
    trained: Collection[str] = (),
) -> Labels:
    """Give every row of a store its label; rows without one are left out and counted.

    Args:
        rows: the store's rows.
        scope: what a row is: `word`, `sentence`, `piece`, or `position` (one of them, so one row per example).
        corpus: the corpus the store was made from.
        task: gives the labels; it is prepared here.
        cluster: the resampling unit of `Labels.groups`: `sentence`, `document` (or group), or `auto`, the document
            where the label is constant within documents.
        inputs: by example ordinal, unknown pieces and hash of the piece ids of inputs that their text does not tell.
        of_chats: whether the texts were read within their chats.
        trained: further inputs (of `input_names`) on which probes that are scored here are trained.

    Raises:
        BadParameter: rows of another level than the task's, or an unknown cluster.
        DegenerateDesign: a design from which nothing can be learned, or whose score would mean nothing.
        ProvenanceMismatch: rows that point outside the corpus.
    """
    task.prepare(corpus)
    name = task_name(task)
    _check_level(task, name, scope, cluster)
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
        reading=task.reading,
        other_word=placed.other_word,
        other_row=placed.other_row,
        choice=placed.choice,
        punctuation=is_punctuation(corpus, placed) if task.level == "pair" else None,
    )
    check_labels(labels, corpus)
    same = input_codes(corpus, inputs or {}, of_chats=of_chats)
    others = np.isin(input_names(corpus.examples, of_chats=of_chats), list(trained)) if trained else None
    return with_clusters(with_fresh(labels, same, others), corpus, same, cluster)


def task_name(task: Task) -> str:
    """Return the name a task is asked for by, such as `feature:Number`."""
    name = registry.member_name(type(task))
    return f"{name}:{task.argument}" if task.argument else name


def _check_level(task: Task, name: str, scope: str, cluster: str) -> None:
    if cluster not in CLUSTERS:
        raise BadParameter("unknown resampling unit", needed="auto, sentence or document", found=repr(cluster))
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
