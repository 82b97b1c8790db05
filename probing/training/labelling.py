"""Rows of a store and a task to Labels: the target of every row, with all that controls and statistics need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from probing.contracts import Task
from probing.corpus import SPLITS, Corpus, Example
from probing.design import Labels
from probing.errors import BadParameter, ProvenanceMismatch
from probing.training.label_checks import check_labels
from probing.training.places import Placed, is_punctuation, place_keys, place_words

Ints = NDArray[np.int64]
_OWN_KEYS = ("type", "lemma", "document", "text", "first", "second", "offset", "length")


class RowTable(Protocol):
    """What labelling needs to know of a store's rows, R of them."""

    @property
    def example(self) -> Ints:
        """`(R,)` ordinal of the row's example in the corpus."""

    @property
    def word(self) -> Ints:
        """`(R,)` index of the row's word in its example, -1 for none."""


def label_rows(
    rows: RowTable,
    scope: str,
    corpus: Corpus,
    task: Task,
    *,
    cluster: Literal["sentence", "document"] | str = "sentence",
) -> Labels:
    """Give every row of a store its label; rows without one are left out and counted.

    Args:
        rows: the store's rows.
        scope: what a row is: `word`, `sentence`, `piece`, or `position` (one of them, so one row per example).
        corpus: the corpus the store was made from.
        task: gives the labels; it is prepared here.
        cluster: the resampling unit of `Labels.groups`.

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
    keys, key_names = _keys(corpus, placed, task.level)
    labels = Labels(
        task=name, kind=task.kind, y=y, classes=classes, split=split,
        groups=_groups(corpus, example, cluster), example=example, word=placed.word, row=placed.row,
        keys=keys, key_names=key_names, excluded=placed.excluded, reading=task.reading,
        other_word=placed.other_word, other_row=placed.other_row, choice=placed.choice,
        punctuation=is_punctuation(corpus, placed) if task.level == "pair" else None,
    )  # fmt: skip
    check_labels(labels, corpus)
    return labels


def task_name(task: Task) -> str:
    """The name a task is asked for by, such as `feature:Number`."""
    name = type(task).__module__.rpartition(".")[2]
    return f"{name}:{task.argument}" if task.argument else name


def _check_level(task: Task, name: str, scope: str, cluster: str) -> None:
    if cluster not in ("sentence", "document"):
        raise BadParameter("unknown resampling unit", needed="sentence or document", found=repr(cluster))
    if task.read_from != ("sentence" if scope == "position" else scope):
        wanted = f"{task.read_from}:mean"
        raise BadParameter(
            f"task {name} labels {task.level}s, the store's rows are {scope}s", needed=f"{task.read_from} rows",
            found=f"{scope} rows",
            next_step=f"extract again with rows {wanted} (rows=\"{wanted}\", --rows {wanted}) to another folder",
        )  # fmt: skip


def _labelled(rows: RowTable, corpus: Corpus, task: Task, position: Ints) -> Placed:
    """Store rows with a label in train, dev or test, their values, and the count of the others by reason."""
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
            f"task {task_name(task)} gives the wrong number of labels", needed=str(expected), found=str(len(values)),
            where=f"sentence {example.id}", next_step="correct the task's `labels`: None where there is no label",
        )  # fmt: skip
    return values


def _positions(rows: RowTable, corpus: Corpus, level: str) -> Ints:
    """`(R,)` index of each row's label when the labels of all examples are laid end to end."""
    example, word = np.asarray(rows.example), np.asarray(rows.word)
    sizes = np.array([len(e.words) if level == "word" else 1 for e in corpus.examples], dtype=np.int64)
    inside = bool(((example >= 0) & (example < len(corpus))).all())
    offset = word if level == "word" else np.zeros_like(example)
    if not (inside and ((offset >= 0) & (offset < sizes[example])).all()):
        raise ProvenanceMismatch(
            "the store has rows that this corpus has not", needed="the corpus the store was made from",
            found=f"a corpus of {len(corpus)} examples", where=corpus.source,
            next_step="give the same files, in the same order, as for `probing extract`",
        )  # fmt: skip
    return (np.cumsum(sizes) - sizes)[example] + offset


def _targets(values: list[Any], kind: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    if kind == "real":
        return np.array(values, dtype=np.float64), ()
    return _label_sets(values) if kind == "labels" else _codes(values)


def _label_sets(values: list[tuple[str, ...]]) -> tuple[Ints, tuple[str, ...]]:
    """`(N, C)`, 1 where the row has the label."""
    codes, names = _codes([name for found in values for name in found])
    y = np.zeros((len(values), len(names)), dtype=np.int64)
    y[np.repeat(np.arange(len(values)), [len(found) for found in values]), codes] = 1
    return y, names


def _codes(values: Sequence[str]) -> tuple[Ints, tuple[str, ...]]:
    """Codes into the sorted distinct values. (A dictionary: np.unique sorts all rows, ten times slower.)"""
    names = sorted(set(values))
    index = {name: code for code, name in enumerate(names)}
    return np.fromiter((index[value] for value in values), np.int64, len(values)), tuple(names)


def _per_example(values: Sequence[str], example: Ints) -> NDArray[np.str_]:
    return np.array(values, dtype=np.str_)[example] if len(values) else np.zeros(0, dtype=np.str_)


def _groups(corpus: Corpus, example: Ints, cluster: str) -> Ints:
    if cluster == "sentence":
        return example.copy()
    return _example_codes([e.group for e in corpus.examples], example)[0]


def _example_codes(values: Sequence[str], example: Ints) -> tuple[Ints, tuple[str, ...]]:
    """Codes of an example's value for every row; only values of these rows get a code."""
    present, inverse = np.unique(example, return_inverse=True)
    codes, names = _codes([values[ordinal] for ordinal in present.tolist()])
    return codes[inverse], names


def _keys(corpus: Corpus, placed: Placed, level: str) -> tuple[dict[str, Ints], dict[str, tuple[str, ...]]]:
    """The keys by which controls can draw; a missing value is the empty string."""
    found: dict[str, tuple[Ints, tuple[str, ...]]] = {}
    examples, example, word = corpus.examples, placed.example, placed.word
    if level in ("span", "pair"):
        found |= place_keys(corpus, level, placed)
    elif level == "word":
        found["type"] = _word_codes((e.forms for e in examples), example, word, examples)
        if any("lemma" in e.word_columns for e in examples):
            lemmas = (tuple(_key(v) for v in e.word_columns.get("lemma", (None,) * len(e.words))) for e in examples)
            found["lemma"] = _word_codes(lemmas, example, word, examples)
    else:
        found["text"] = _example_codes([e.text for e in examples], example)
    if any(e.document is not None for e in examples):
        found["document"] = _example_codes([e.group for e in examples], example)
    for column in _key_columns(examples):
        found[column] = _example_codes([_key(e.columns.get(column)) for e in examples], example)
    return {name: codes for name, (codes, _) in found.items()}, {name: names for name, (_, names) in found.items()}


def _word_codes(
    values: Iterable[tuple[str, ...]], example: Ints, word: Ints, examples: Sequence[Example]
) -> tuple[Ints, tuple[str, ...]]:
    flat = [value for of_one in values for value in of_one]
    sizes = np.array([len(e.words) for e in examples], dtype=np.int64)
    position = (np.cumsum(sizes) - sizes)[example] + word
    return _codes([flat[p] for p in position.tolist()])


def _key_columns(examples: Sequence[Example]) -> list[str]:
    """Sentence columns of strings and whole numbers."""
    names = dict.fromkeys(name for e in examples for name in e.columns if name not in _OWN_KEYS)
    return [name for name in names if not any(isinstance(e.columns.get(name), float) for e in examples)]


def _key(value: Hashable) -> str:
    return "" if value is None else str(value)


def facts(labels: Labels, corpus: Corpus) -> dict[str, Any]:
    """Data facts of a task, ready for JSON.

    Returns:
        `level`; `rows`, `sentences` by split; `classes` (0 for real); `majority_label` (of train) and `majority`, the
        fraction of test rows that carry it; `entropy_bits` of the train labels; `type_overlap`, the fraction of test
        rows whose type occurs in train (None: no types); `excluded` by reason; `unseen_classes`, the dev and test
        rows whose class train lacks; `duplicate_sentences`, the dev and test texts that occur in train; `mean` and
        `std` of real train targets. What does not apply is None.
    """
    train, test = labels.rows("train"), labels.rows("test")
    sentences = {split: np.unique(labels.example[labels.rows(split)]) for split in SPLITS}
    return {
        "level": labels.level,
        "rows": {split: len(labels.rows(split)) for split in SPLITS},
        "sentences": {split: len(ordinals) for split, ordinals in sentences.items()},
        "classes": len(labels.classes),
        **_FACTS_OF[labels.kind](labels, train, test),
        "type_overlap": _type_overlap(labels, train, test),
        "excluded": dict(labels.excluded),
        "duplicate_sentences": _duplicates(sentences, corpus),
    }


def _class_facts(labels: Labels, train: Ints, test: Ints) -> dict[str, Any]:
    counts = np.bincount(labels.y[train], minlength=len(labels.classes))
    p = counts[counts > 0] / counts.sum()
    majority = int(counts.argmax())
    held_out = labels.y[np.isin(labels.split, ("dev", "test"))]
    return {
        "majority_label": labels.classes[majority], "majority": float((labels.y[test] == majority).mean()),
        "entropy_bits": float(-(p * np.log2(p)).sum()), "unseen_classes": int((counts[held_out] == 0).sum()),
        "mean": None, "std": None,
    }  # fmt: skip


def _label_facts(labels: Labels, train: Ints, test: Ints) -> dict[str, Any]:
    held_out = np.isin(labels.split, ("dev", "test"))
    unmet = labels.y[held_out][:, labels.y[train].sum(axis=0) == 0]
    return {
        "majority_label": None, "majority": None, "entropy_bits": None, "unseen_classes": int(unmet.any(axis=1).sum()),
        "mean": None, "std": None,
    }  # fmt: skip


def _real_facts(labels: Labels, train: Ints, test: Ints) -> dict[str, Any]:
    y = labels.y[train]
    return {
        "majority_label": None, "majority": None, "entropy_bits": None, "unseen_classes": 0,
        "mean": float(y.mean()), "std": float(y.std()),
    }  # fmt: skip


_FACTS_OF = {"classes": _class_facts, "labels": _label_facts, "real": _real_facts}


def _type_overlap(labels: Labels, train: Ints, test: Ints) -> float | None:
    types = labels.keys.get("type")
    return None if types is None else float(np.isin(types[test], types[train]).mean())


def _duplicates(sentences: dict[str, Ints], corpus: Corpus) -> int:
    known = {corpus.examples[e].text for e in sentences["train"]}
    return sum(corpus.examples[e].text in known for split in ("dev", "test") for e in sentences[split])
