"""Facts about the rows of a task (classes, majority, entropy, rows left out), and the keys that rows share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.labels import MISSING, Labels
from probing.statistics.clusters import EVALUATED
from probing.text.corpus import SPLITS, Corpus, Example
from probing.text.example import as_input, composed, named
from probing.training.places import Placed, place_keys

Ints = NDArray[np.int64]


def facts(labels: Labels, corpus: Corpus) -> dict[str, Any]:
    """Return facts about the data of a task, ready for JSON. Facts that do not apply are None.

    Returns:
        `level`; `rows`, `sentences` (different inputs) and `clusters` (resampled units), by split; `unit`, the kind of
        a cluster, and `unit_reason`; `shared_inputs` of dev and test: numbers of `rows` and `texts` that also occur in
        train, and of `new_rows` and `new_sentences` that do not (empty if no input occurs in train); `alone`, number of
        labelled examples without a document or group, if others have one; `classes` (0 for real); `majority_label` (of
        train) and `majority`, the fraction of test rows with that label; `entropy_bits` of the train labels;
        `type_overlap`, the fraction of test rows whose type occurs in train (None: no types); `excluded`, by reason;
        `unseen_classes`, number of classes of dev and test that are not in train, and `unseen_rows`, number of test
        rows with such a class (absent if there is none); `duplicate_sentences`, number of dev and test examples whose
        text occurs in train; `mean` and `std` of real train targets; `outlier`, of real targets the one very far from
        all others (absent if there is none).
    """
    train, test = labels.rows("train"), labels.rows("test")
    examples = {split: np.unique(labels.example[labels.rows(split)]).tolist() for split in SPLITS}
    documents = [corpus.examples[e].document for found in examples.values() for e in found]
    return {
        "level": labels.level,
        "rows": {split: len(labels.rows(split)) for split in SPLITS},
        "sentences": {s: len({as_input(corpus.examples[e].text) for e in found}) for s, found in examples.items()},
        "clusters": {split: len(np.unique(labels.groups[labels.rows(split)])) for split in SPLITS},
        "unit": labels.unit,
        "unit_reason": labels.unit_reason,
        "shared_inputs": _shared(labels, corpus),
        "alone": documents.count(None) if any(documents) else 0,
        "classes": len(labels.classes),
        **_FACTS_OF[labels.kind](labels, train, test),
        "type_overlap": _type_overlap(labels, train, test),
        "excluded": dict(labels.excluded),
        "duplicate_sentences": _duplicates(labels),
    }


def _class_facts(labels: Labels, train: Ints, test: Ints) -> dict[str, Any]:
    counts = np.bincount(labels.y[train], minlength=len(labels.classes))
    p = counts[counts > 0] / counts.sum()
    majority = int(counts.argmax())
    held_out = labels.y[np.isin(labels.split, ("dev", "test"))]
    return {
        "majority_label": labels.classes[majority],
        "majority": float((labels.y[test] == majority).mean()),
        "entropy_bits": float(-(p * np.log2(p)).sum()),
        "unseen_classes": len(np.unique(held_out[counts[held_out] == 0])),
        "mean": None,
        "std": None,
    } | _unseen(int((counts[labels.y[test]] == 0).sum()))


def _label_facts(labels: Labels, train: Ints, test: Ints) -> dict[str, Any]:
    held_out = np.isin(labels.split, ("dev", "test"))
    unmet = labels.y[:, labels.y[train].sum(axis=0) == 0]
    return {
        "majority_label": None,
        "majority": None,
        "entropy_bits": None,
        "unseen_classes": int(unmet[held_out].any(axis=0).sum()),
        "mean": None,
        "std": None,
    } | _unseen(int(unmet[test].any(axis=1).sum()))


def _unseen(n_rows: int) -> dict[str, int]:
    """Return the number of test rows whose class is not in train, if there are any."""
    return {"unseen_rows": n_rows} if n_rows else {}


def _real_facts(labels: Labels, train: Ints, test: Ints) -> dict[str, Any]:
    y = labels.y[train]
    outlier = _outlier(labels)
    return ({} if outlier is None else {"outlier": outlier}) | {
        "majority_label": None,
        "majority": None,
        "entropy_bits": None,
        "unseen_classes": 0,
        "mean": float(y.mean()),
        "std": float(y.std()),
    }


FAR = 50  # times the distance between quartiles, from the nearer of them
TAIL, CHANCE = 20, 0.002  # values next to the farthest that show how the tail falls; how often it lies so far by chance


def _outlier(labels: Labels) -> dict[str, Any] | None:
    """Return the target that lies farthest from all others, if it lies very far: its `value` and `split`, its `row` in
    the corpus, and the `lowest` and `highest` of the others; None otherwise.

    It has to be far from the quartiles, and farther from the value next to it than the tail of a skewed distribution
    explains (`_is_in_tail`).
    """
    rows = np.flatnonzero(np.isin(labels.split, SPLITS))
    y = labels.y[rows]
    low, high = np.quantile(y, [0.25, 0.75]) if len(y) else (0.0, 0.0)
    beyond = np.maximum(low - y, y - high)
    if not len(y) or high <= low or beyond.max() <= FAR * (high - low):
        return None
    if _is_in_tail(np.abs(y - np.median(y))):
        return None
    at = int(beyond.argmax())
    others = np.delete(y, at)
    return {
        "value": float(y[at]),
        "row": int(labels.example[rows[at]]),
        "split": str(labels.split[rows[at]]),
        "lowest": float(others.min()),
        "highest": float(others.max()),
    }


def _is_in_tail(distances: NDArray[np.float64]) -> bool:
    """Return whether the largest of distances may come from the tail that the next largest have.

    In a tail that falls as a power, the logarithm of the largest over the next, divided by the mean logarithm of m next
    ones over the one after these (Hill 1975, Annals of Statistics 3), has the F distribution with 2 and 2m degrees of
    freedom; log-normal and other tails fall faster.
    """
    m = min(TAIL, max(len(distances) // 5, 2))
    ordered = np.sort(distances)[::-1][: m + 2]
    if len(ordered) < m + 2 or ordered[-1] <= 0:
        return False
    gap = np.log(ordered[0] / ordered[1])
    spread = np.log(ordered[1:-1] / ordered[-1]).mean()
    return bool(gap <= m * (CHANCE ** (-1 / m) - 1) * spread)


_FACTS_OF = {"classes": _class_facts, "labels": _label_facts, "real": _real_facts}


def _type_overlap(labels: Labels, train: Ints, test: Ints) -> float | None:
    types = labels.keys.get("type")
    return None if types is None else float(np.isin(types[test], types[train]).mean())


def _duplicates(labels: Labels) -> int:
    return 0 if labels.fresh is None else len(np.unique(labels.example[~labels.fresh]))


def _shared(labels: Labels, corpus: Corpus) -> dict[str, dict[str, int]]:
    if labels.fresh is None:
        return {}

    def texts(rows: Ints) -> int:
        return len({as_input(corpus.examples[e].text) for e in np.unique(labels.example[rows]).tolist()})

    found = {}
    for split in EVALUATED:
        rows = labels.rows(split)
        fresh = labels.fresh[rows]
        found[split] = {
            "rows": int((~fresh).sum()),
            "texts": texts(rows[~fresh]),
            "new_rows": int(fresh.sum()),
            "new_sentences": texts(rows[fresh]),
        }
    return found


Coded = tuple[Ints, tuple[str, ...]]
_OWN_KEYS = ("type", "lemma", "document", "text", "first", "second", "offset", "length")


def codes_of(values: Sequence[str | None]) -> Coded:
    """Return codes into the sorted distinct values, with `MISSING` for None. (A dictionary is used, since np.unique is
    ten times slower.)
    """
    names = sorted({value for value in values if value is not None})
    index: dict[str | None, int] = {name: code for code, name in enumerate(names)} | {None: MISSING}
    return np.fromiter((index[value] for value in values), np.int64, len(values)), tuple(names)


def example_codes(values: Sequence[str | None], example: Ints) -> Coded:
    """Return, for every row, the code of a value of its example; only values that occur in these rows get a code."""
    present, inverse = np.unique(example, return_inverse=True)
    codes, names = codes_of([values[ordinal] for ordinal in present.tolist()])
    return codes[inverse], names


def row_keys(corpus: Corpus, placed: Placed, level: str) -> tuple[dict[str, Ints], dict[str, tuple[str, ...]]]:
    """Return the keys by which controls can draw, as codes, and the string of every code; a row without a value has the
    code `MISSING`.
    """
    found: dict[str, Coded] = {}
    examples, example, word = corpus.examples, placed.example, placed.word
    if level in ("span", "pair"):
        found |= place_keys(corpus, level, placed)
    elif level == "word":
        found["type"] = _word_codes((map(composed, e.forms) for e in examples), example, word, examples)
        if any("lemma" in e.word_columns for e in examples):
            lemmas = (map(named, e.word_columns.get("lemma", (None,) * len(e.words))) for e in examples)
            found["lemma"] = _word_codes(lemmas, example, word, examples)
    elif corpus.has_texts:
        found["text"] = example_codes([as_input(e.text) for e in examples], example)
    if any(e.document is not None for e in examples):
        found["document"] = example_codes([e.document for e in examples], example)
    for column in key_columns(examples):
        found[column] = example_codes([named(e.columns.get(column)) for e in examples], example)
    return {name: codes for name, (codes, _) in found.items()}, {name: names for name, (_, names) in found.items()}


def with_keys(labels: Labels, wanted: Iterable[str]) -> Labels:
    """Return labels of the rows that have a value of every key wanted; the others are counted as excluded, by key."""
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
    """Return the names of sentence columns that hold strings or whole numbers, which controls can use as keys."""
    names = dict.fromkeys(name for e in examples for name in e.columns if name not in _OWN_KEYS)
    return [name for name in names if not any(isinstance(e.columns.get(name), float) for e in examples)]
