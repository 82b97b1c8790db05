"""Places of spans and pairs of words: those that a task labels, the store rows of their words, and keys for
controls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.task import Task
from probing.errors import BadParameter, CorpusError, DegenerateDesign
from probing.text.corpus import SPLITS, Corpus, Example
from probing.text.example import composed

Ints = NDArray[np.int64]
FARTHEST = 20  # words between a and b that the key `offset` tells apart
CHOSEN = ("no", "yes")


@dataclass(frozen=True)
class Placed:
    """Holds the values of N labelled rows, the columns of Labels that locate them, and in `excluded` the number of rows
    left out, by reason.
    """

    values: list[Any]
    example: Ints
    word: Ints
    row: Ints
    excluded: dict[str, int]
    other_word: Ints | None = None
    other_row: Ints | None = None
    choice: Ints | None = None


def place_words(corpus: Corpus, task: Task, name: str, position: Ints) -> Placed:
    """Return the spans or pairs of a task that have a label and whose words have rows; the others are counted by
    reason.

    Args:
        corpus: the corpus that the task was prepared for.
        task: a task of level `span` or `pair`.
        name: name of the task, for messages.
        position: `(R,)` for each row of the store, the number of its word, counted over the words of all examples.

    Raises:
        CorpusError: a place is not two words of its sentence; the message names the sentence.
        BadParameter: the numbers of labels and places differ, or a choice has labels other than `no` and `yes`.
        DegenerateDesign: a choice does not have exactly one right pair.
    """
    sizes = np.array([len(e.words) for e in corpus.examples], dtype=np.int64)
    base = np.cumsum(sizes) - sizes
    home = np.full(int(sizes.sum()), -1, dtype=np.int64)
    home[position] = np.arange(len(position))
    parts: list[Ints] = []
    values: list[Any] = []
    excluded: Counter[str] = Counter()
    for ordinal, example in enumerate(corpus.examples):
        places = _places_of(task, name, example)
        if example.split not in SPLITS:
            excluded[f"split {example.split}"] += len(places)
            continue
        found = task.labels(example)
        _check_count(name, example, len(places), len(found))
        parts.append(np.concatenate([np.full((len(places), 1), ordinal), places], axis=1))
        values += found
    example_of, a, b = np.concatenate([np.zeros((0, 3), np.int64), *parts]).T
    first, last = base[example_of] + a, base[example_of] + b
    has_label = _flags(value is not None for value in values)
    choice = np.unique(first, return_inverse=True)[1].reshape(-1) if task.chooses else None
    right = None if choice is None else _right(values, choice, has_label, corpus, (example_of, a), name)
    has_rows = _all_have_rows(home, first, last) if task.level == "span" else (home[first] >= 0) & (home[last] >= 0)
    kept = has_label & has_rows
    excluded["no label"] = int((~has_label).sum())
    excluded[f"a word of the {task.level} has no row"] = int((has_label & ~has_rows).sum())
    if choice is not None and right is not None:
        lost = np.isin(choice, choice[right & ~has_rows]) & kept
        excluded["the right word has no row"] = int(lost.sum())
        kept &= ~lost
    rows = np.flatnonzero(kept)
    return Placed(
        values=[values[i] for i in rows.tolist()],
        example=example_of[rows],
        word=a[rows],
        row=home[first[rows]],
        excluded={reason: n for reason, n in excluded.items() if n},
        other_word=b[rows],
        other_row=home[last[rows]],
        choice=None if choice is None else choice[rows],
    )


def _places_of(task: Task, name: str, example: Example) -> Ints:
    places = np.asarray(task.places(example))
    if not places.size:
        return np.zeros((0, 2), dtype=np.int64)
    sound = places.ndim == 2 and places.shape[1] == 2 and places.dtype.kind in "iu"
    bad = np.flatnonzero(_outside(places, len(example.words), task.level)) if sound else np.zeros(1, np.int64)
    if len(bad):
        wanted = "the first and the last word of a span" if task.level == "span" else "two words of one sentence"
        raise CorpusError(
            f"task {name} gives a {task.level} that its sentence has not",
            needed=f"{wanted}, numbered 0 to {len(example.words) - 1}",
            found=str(places[bad[0]].tolist() if sound else places.tolist())[:80],
            where=f"sentence {example.id}",
            next_step="correct the annotation of this sentence (words are counted from 0)",
        )
    return places.astype(np.int64)


def _outside(places: NDArray[Any], n_words: int, level: str) -> NDArray[np.bool_]:
    outside = np.asarray(((places < 0) | (places >= n_words)).any(axis=1))
    return outside | (places[:, 1] < places[:, 0]) if level == "span" else outside


def _flags(values: Iterable[bool]) -> NDArray[np.bool_]:
    return np.fromiter(values, np.bool_)


def _check_count(name: str, example: Example, needed: int, found: int) -> None:
    if needed != found:
        raise BadParameter(
            f"task {name} gives the wrong number of labels",
            needed=f"{needed}, one per place",
            found=str(found),
            where=f"sentence {example.id}",
            next_step="correct the task's `labels`: None where there is no label",
        )


def _all_have_rows(home: Ints, first: Ints, last: Ints) -> NDArray[np.bool_]:
    """Return whether every word of each span owns a row."""
    missing = np.concatenate([[0], np.cumsum(home < 0)])
    return np.asarray(missing[last + 1] == missing[first])


def _right(
    values: Sequence[Any], choice: Ints, has_label: NDArray[np.bool_], corpus: Corpus, word: Sequence[Ints], name: str
) -> NDArray[np.bool_]:
    """Return which pairs are the right ones of their choice."""
    for other in set(values) - {None, *CHOSEN}:
        raise BadParameter(
            f"task {name} is a choice and has another label", needed=" or ".join(CHOSEN), found=repr(other)
        )
    right = _flags(value == CHOSEN[1] for value in values) & has_label
    counts = np.bincount(choice[right], minlength=int(choice.max(initial=-1)) + 1)
    for bad in np.flatnonzero(counts != 1)[:1]:
        row = int(np.flatnonzero(choice == bad)[0])
        raise DegenerateDesign(
            f"task {name}: a choice needs exactly one right pair",
            needed="one pair labelled yes",
            found=str(int(counts[bad])),
            next_step="correct the annotation of this word",
            where=f"sentence {corpus.examples[word[0][row]].id}, word {int(word[1][row])}",
        )
    return right


def place_keys(corpus: Corpus, level: str, placed: Placed) -> dict[str, tuple[Ints, tuple[str, ...]]]:
    """Return the keys of spans (`type`: the text; `length` in words) or of pairs (`type`, `first`, `second`,
    `offset`).
    """
    a, b = placed.word, placed.other_word
    assert b is not None  # for the reader of types: places always have it
    if level == "span":
        texts = {(e, i, j): _text(corpus.examples[e], i, j) for e, i, j in _triples(placed.example, a, b)}
        found = [texts[triple] for triple in _triples(placed.example, a, b)]
        return {"type": _coded(found), "length": _coded([str(n) for n in (b - a + 1).tolist()])}
    forms, vocabulary = _forms(corpus)
    base = np.cumsum([0, *(len(e.words) for e in corpus.examples)])[placed.example]
    first, second = forms[base + a], forms[base + b]
    distinct, codes = np.unique(first * len(vocabulary) + second, return_inverse=True)
    pairs = zip(*(part.tolist() for part in np.divmod(distinct, len(vocabulary))), strict=True)
    offset = np.clip(b - a, -FARTHEST, FARTHEST)
    return {
        "type": (codes.reshape(-1), tuple([f"{vocabulary[i]}\t{vocabulary[j]}" for i, j in pairs])),
        "first": (first, vocabulary),
        "second": (second, vocabulary),
        "offset": (offset + FARTHEST, tuple(f"{k:+d}" for k in range(-FARTHEST, FARTHEST + 1))),
    }


def _triples(example: Ints, a: Ints, b: Ints) -> list[tuple[int, int, int]]:
    return list(zip(example.tolist(), a.tolist(), b.tolist(), strict=True))


def _text(example: Example, first: int, last: int) -> str:
    return composed(example.text[example.words[first][0] : example.words[last][1]])


def _forms(corpus: Corpus) -> tuple[Ints, tuple[str, ...]]:
    """Return codes of the forms of all words, examples counted on."""
    return _coded([composed(form) for example in corpus.examples for form in example.forms])


def _coded(values: Sequence[str]) -> tuple[Ints, tuple[str, ...]]:
    names = sorted(set(values))
    index = {name: code for code, name in enumerate(names)}
    return np.fromiter((index[value] for value in values), np.int64, len(values)), tuple(names)


def is_punctuation(corpus: Corpus, placed: Placed) -> NDArray[np.bool_] | None:
    """Return, for each pair `(N,)`, whether one of its words is punctuation by the column `upos`; None if the corpus
    has no such column.
    """
    if not any("upos" in example.word_columns for example in corpus.examples):
        return None
    tags = [example.word_columns.get("upos", (None,) * len(example.words)) for example in corpus.examples]
    flags = np.array([tag == "PUNCT" for of_one in tags for tag in of_one], dtype=bool)
    base = np.cumsum([0, *(len(of_one) for of_one in tags)])[placed.example]
    assert placed.other_word is not None
    return np.asarray(flags[base + placed.word] | flags[base + placed.other_word])
