"""Reasons to doubt a task's numbers, counted before anything is trained: none is an error, but users should know
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.labels import Labels
from probing.statistics.clusters import EVALUATED
from probing.text.corpus import SPLITS, Corpus
from probing.text.text_forms import as_input, named
from probing.training.row_keys import key_columns

LIKE_GROUP = (2, 20)  # rows of one value
LEAST_GROUPS = 10
MOSTLY = 0.95
Inputs = Mapping[int, tuple[int, str]]


def doubts(labels: Labels, corpus: Corpus, inputs: Inputs, unknown_pieces: float | None) -> dict[str, Any]:
    """Return data facts beside those of `row_facts.facts`, ready for JSON.

    Args:
        labels: of the task.
        corpus: of the labels.
        inputs: by example ordinal, unknown pieces and hash of the piece ids of inputs that their text does not tell.
        unknown_pieces: share of all content pieces that is the tokenizer's unknown piece; None: not known.

    Returns:
        `like_groups`, of columns whose values recur across splits as those of a group do, how many `values`, on how
        many rows (`least`, `most`), how many of them in several splits (`crossing`); `recomposed`, examples with a
        label in another Unicode form by column; `group_name`, what groups are called; `unknown_pieces`, as given;
        `conflicting_inputs`, the test rows whose input occurs with another label; `one_label`, the only label of dev or
        test (of the rows that are judged) where it has no other; `alike_labels`, lists of labels that differ by
        upper and lower case or white space alone.
    """
    return {
        "like_groups": _like_groups(labels, corpus),
        "recomposed": dict(Counter(name for e in corpus.examples for name in e.recomposed)),
        "group_name": corpus.unit,
        "unknown_pieces": unknown_pieces,
        "conflicting_inputs": int(_conflicting(labels, corpus, inputs)[labels.rows("test")].sum()),
        "one_label": _only_labels(labels),
        "alike_labels": _alike(labels.classes),
    }


def _like_groups(labels: Labels, corpus: Corpus) -> dict[str, dict[str, int]]:
    """Return columns of sentences in which (nearly) every value is on 2 to 20 examples, and some value is in more than
    one split.
    """
    present = np.unique(labels.example[np.isin(labels.split, SPLITS)])
    examples = [corpus.examples[e] for e in present.tolist()]
    label = labels.codes[np.unique(labels.example, return_index=True)[1]] if labels.level == "sentence" else None
    found = {}
    for column in key_columns(examples):
        values = [named(e.columns.get(column)) for e in examples]
        counts = Counter(value for value in values if value is not None)
        splits = {value: set() for value in counts}  # type: dict[str, set[str]]
        for value, example in zip(values, examples, strict=True):
            if value is not None:
                splits[value].add(example.split)
        fitting = sum(LIKE_GROUP[0] <= n <= LIKE_GROUP[1] for n in counts.values())
        crossing = sum(len(of_one) > 1 for of_one in splits.values())
        is_label = label is not None and _same(values, label.tolist())
        if len(counts) >= LEAST_GROUPS and fitting >= MOSTLY * len(counts) and crossing and not is_label:
            found[column] = {
                "values": len(counts),
                "least": min(counts.values()),
                "most": max(counts.values()),
                "crossing": crossing,
            }
    return found


def _same(values: Sequence[Any], labels: Sequence[Any]) -> bool:
    """Return whether values and labels correspond one to one."""
    pairs = set(zip(values, labels, strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def _only_labels(labels: Labels) -> dict[str, str]:
    found: dict[str, str] = {}
    for split in EVALUATED if labels.kind == "classes" else ():
        rows = labels.rows(split)
        new = rows if labels.fresh is None else rows[labels.fresh[rows]]
        present = np.unique(labels.y[new if len(new) else rows])
        found |= {split: labels.classes[int(present[0])]} if len(present) == 1 else {}
    return found


def _alike(classes: Sequence[str]) -> list[list[str]]:
    by_form: dict[str, list[str]] = {}
    for name in classes:
        by_form.setdefault(" ".join(name.split()).casefold(), []).append(name)
    return [names for names in by_form.values() if len(names) > 1]


def _conflicting(labels: Labels, corpus: Corpus, inputs: Inputs) -> NDArray[np.bool_]:
    """Return whether a row with the same input (and the same word of it), in any split, has another label, `(N,)`."""
    code_of: dict[str, int] = {}
    present, position = np.unique(labels.example, return_inverse=True)
    codes = [code_of.setdefault(_input(corpus, e, inputs), len(code_of)) for e in present.tolist()]
    other = np.zeros_like(labels.word) if labels.other_word is None else labels.other_word
    longest = max(int(labels.word.max()), int(other.max())) + 2
    place = (labels.word + 1) * longest + other  # a word, or the two words of a span or pair
    distinct, same = np.unique(np.array(codes, np.int64)[position] * longest**2 + place, return_inverse=True)
    same = same.reshape(-1)
    lowest = np.full(len(distinct), np.inf)
    highest = np.full(len(distinct), -np.inf)
    codes_of = labels.codes
    np.minimum.at(lowest, same, codes_of)
    np.maximum.at(highest, same, codes_of)
    return np.asarray((lowest != highest)[same])


def _input(corpus: Corpus, example: int, inputs: Inputs) -> str:
    """Return what tells an input from others: the hash of its piece ids where the text does not."""
    return f"ids {inputs[example][1]}" if example in inputs else f"text {as_input(corpus.examples[example].text)}"
