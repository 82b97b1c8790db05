"""What makes a task's numbers doubtful, counted before anything is trained: it is no error, but has to be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.corpus import Corpus
from probing.design import Labels

Inputs = Mapping[int, tuple[int, str]]


def doubts(labels: Labels, corpus: Corpus, inputs: Inputs, unknown_pieces: float | None) -> dict[str, Any]:
    """Data facts beside those of `labelling.facts`, ready for JSON.

    Args:
        labels: of the task.
        corpus: of the labels.
        inputs: by example ordinal, unknown pieces and hash of the piece ids of inputs that their text does not tell.
        unknown_pieces: share of all content pieces that is the tokenizer's unknown piece; None: not known.

    Returns:
        `unknown_pieces`, as given; `conflicting_inputs`, the test rows whose input occurs with another label;
        `one_label`, the only label of dev or test where it has no other; `alike_labels`, lists of labels that differ
        by upper and lower case or white space alone.
    """
    return {
        "unknown_pieces": unknown_pieces,
        "conflicting_inputs": int(_conflicting(labels, corpus, inputs)[labels.rows("test")].sum()),
        "one_label": _only_labels(labels),
        "alike_labels": _alike(labels.classes),
    }


def _only_labels(labels: Labels) -> dict[str, str]:
    present = {split: np.unique(labels.y[labels.rows(split)]) for split in ("dev", "test") if labels.kind == "classes"}
    return {split: labels.classes[int(found[0])] for split, found in present.items() if len(found) == 1}


def _alike(classes: Sequence[str]) -> list[list[str]]:
    by_form: dict[str, list[str]] = {}
    for name in classes:
        by_form.setdefault(" ".join(name.split()).casefold(), []).append(name)
    return [names for names in by_form.values() if len(names) > 1]


def _conflicting(labels: Labels, corpus: Corpus, inputs: Inputs) -> NDArray[np.bool_]:
    """`(N,)` whether a row with the same input (and the same word of it), in any split, has another label."""
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
    """What tells an input from others: the hash of its piece ids where the text does not."""
    return f"ids {inputs[example][1]}" if example in inputs else f"text {corpus.examples[example].text}"
