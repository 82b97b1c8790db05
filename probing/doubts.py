"""What makes a task's numbers doubtful, counted before anything is trained: it is no error, but has to be said."""

from __future__ import annotations

from collections.abc import Mapping
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
        `unknown_pieces`, as given; `conflicting_inputs`, the test rows whose input occurs with another label.
    """
    return {
        "unknown_pieces": unknown_pieces,
        "conflicting_inputs": int(_conflicting(labels, corpus, inputs)[labels.rows("test")].sum()),
    }


def _conflicting(labels: Labels, corpus: Corpus, inputs: Inputs) -> NDArray[np.bool_]:
    """`(N,)` whether a row with the same input (and the same word of it), in any split, has another label."""
    code_of: dict[str, int] = {}
    present, position = np.unique(labels.example, return_inverse=True)
    codes = [code_of.setdefault(_input(corpus, e, inputs), len(code_of)) for e in present.tolist()]
    rows = np.stack([np.array(codes, np.int64)[position], labels.word], axis=1)
    distinct, same = np.unique(rows, axis=0, return_inverse=True)
    same = same.reshape(-1)
    lowest = np.full(len(distinct), np.inf)
    highest = np.full(len(distinct), -np.inf)
    np.minimum.at(lowest, same, labels.y)
    np.maximum.at(highest, same, labels.y)
    return np.asarray((lowest != highest)[same])


def _input(corpus: Corpus, example: int, inputs: Inputs) -> str:
    """What tells an input from others: the hash of its piece ids where the text does not."""
    return f"ids {inputs[example][1]}" if example in inputs else f"text {corpus.examples[example].text}"
