"""Keys of rows, by which controls draw: word types, lemmas, documents, and the columns of the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from probing.labels import MISSING, Labels
from probing.text.corpus import Corpus, Example
from probing.text.text_forms import as_input, composed, named
from probing.training.places import Placed, place_keys

Ints = NDArray[np.int64]
Coded = tuple[Ints, tuple[str, ...]]
_OWN_KEYS = ("type", "lemma", "document", "text", "first", "second", "offset", "length")


def codes_of(values: Sequence[str | None]) -> Coded:
    """Return codes into the sorted distinct values, `MISSING` for None. (A dictionary: np.unique is ten times
    slower.)
    """
    names = sorted({value for value in values if value is not None})
    index: dict[str | None, int] = {name: code for code, name in enumerate(names)} | {None: MISSING}
    return np.fromiter((index[value] for value in values), np.int64, len(values)), tuple(names)


def example_codes(values: Sequence[str | None], example: Ints) -> Coded:
    """Return codes of an example's value for every row; only values of these rows get a code."""
    present, inverse = np.unique(example, return_inverse=True)
    codes, names = codes_of([values[ordinal] for ordinal in present.tolist()])
    return codes[inverse], names


def row_keys(corpus: Corpus, placed: Placed, level: str) -> tuple[dict[str, Ints], dict[str, tuple[str, ...]]]:
    """Return the keys by which controls can draw, and the names of their codes; a row without a value has `MISSING`."""
    found: dict[str, Coded] = {}
    examples, example, word = corpus.examples, placed.example, placed.word
    if level in ("span", "pair"):
        found |= place_keys(corpus, level, placed)
    elif level == "word":
        found["type"] = _word_codes((map(composed, e.forms) for e in examples), example, word, examples)
        if any("lemma" in e.word_columns for e in examples):
            lemmas = (map(named, e.word_columns.get("lemma", (None,) * len(e.words))) for e in examples)
            found["lemma"] = _word_codes(lemmas, example, word, examples)
    else:
        found["text"] = example_codes([as_input(e.text) for e in examples], example)
    if any(e.document is not None for e in examples):
        found["document"] = example_codes([e.document for e in examples], example)
    for column in key_columns(examples):
        found[column] = example_codes([named(e.columns.get(column)) for e in examples], example)
    return {name: codes for name, (codes, _) in found.items()}, {name: names for name, (_, names) in found.items()}


def with_keys(labels: Labels, wanted: Iterable[str]) -> Labels:
    """Return the rows that have a value of every key wanted; the others are counted as excluded, by key."""
    for key in dict.fromkeys(wanted):
        missing = labels.keys[key] == MISSING if key in labels.keys else np.zeros(len(labels), dtype=bool)
        if missing.any():
            lost = missing if labels.choice is None else np.isin(labels.choice, labels.choice[missing])
            excluded = dict(labels.excluded) | {f"no {key}": int(lost.sum())}
            labels = replace(labels.take(np.flatnonzero(~lost)), excluded=excluded)
    return labels


def _word_codes(
    values: Iterable[Iterable[str | None]], example: Ints, word: Ints, examples: Sequence[Example]
) -> Coded:
    flat = [value for of_one in values for value in of_one]
    sizes = np.array([len(e.words) for e in examples], dtype=np.int64)
    position = (np.cumsum(sizes) - sizes)[example] + word
    return codes_of([flat[p] for p in position.tolist()])


def key_columns(examples: Sequence[Example]) -> list[str]:
    """Return sentence columns of strings and whole numbers."""
    names = dict.fromkeys(name for e in examples for name in e.columns if name not in _OWN_KEYS)
    return [name for name in names if not any(isinstance(e.columns.get(name), float) for e in examples)]
