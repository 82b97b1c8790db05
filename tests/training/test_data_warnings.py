"""Columns that fix the label across splits, and equal inputs of different texts, are warned of by their cause."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probing.reporting.task_results import by_task
from probing.reporting.warnings import _OF_FILES, _way_out, warnings_of_task
from probing.text.corpus import Corpus, Example
from probing.training import train
from probing.training.label_checks import alike_inputs
from tests.samples.training_samples import MemoryStore

AUTHORS, EACH = 12, 40


def corpus_of(columns: Any, seed: int = 0) -> Corpus:
    """Texts of random words; `columns(rng, author)` gives their columns."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(AUTHORS * EACH):
        split = ("train", "train", "train", "dev", "test")[rng.integers(5)]
        text = " ".join(rng.choice([f"w{j}" for j in range(40)], 8)) + f" {i}"
        examples.append(Example(f"e{i}", text, columns=columns(rng, i % AUTHORS), split=split))
    return Corpus(tuple(examples))


def warned(columns: Any, task: str = "column:y") -> str:
    corpus = corpus_of(columns)
    rows = type("Rows", (), {"example": np.arange(len(corpus)), "word": np.full(len(corpus), -1)})
    states = np.random.default_rng(1).standard_normal((len(corpus), 3)).astype(np.float32)
    store = MemoryStore(corpus, {"resid.0": states}, rows, "sentence:mean")
    results = train(store, corpus, task=task, controls=[], progress=False)
    return "\n".join(warnings_of_task(by_task(list(results))[0]))


HALF = np.random.default_rng(3).permutation(["f", "m"] * (AUTHORS // 2))
LEVEL = np.random.default_rng(4).normal(size=AUTHORS)


@pytest.mark.parametrize(
    "label",
    [lambda rng, a: str(HALF[a]), lambda rng, a: float(LEVEL[a] + 0.01 * rng.normal())],
    ids=["classes", "numbers"],
)
@pytest.mark.parametrize("name", ["A{}", "{}"], ids=["names", "numbers"])
def test_a_column_that_fixes_the_label_is_named_however_many_rows_a_value_has(label: Any, name: str) -> None:
    ids = np.random.default_rng(5).permutation(AUTHORS)
    author = (lambda a: int(ids[a])) if name == "{}" else name.format
    found = warned(lambda rng, a: {"y": label(rng, a), "author": author(a)})
    assert "Each value of the column 'author' goes with one label" in found
    assert "--group author" in found and "12 values, 12 of them in more than one split" in found


@pytest.mark.parametrize(
    "columns",
    [
        lambda rng, a: {"y": str(rng.choice(["f", "m"])), "author": f"A{a}"},
        lambda rng, a: {"y": ("f", "m")[a % 2] if rng.random() < 0.85 else "f", "author": f"A{a}"},
        lambda rng, a: {"y": f"L{a}", "same": f"{a} in other words"},
        lambda rng, a: {"y": f"c{a // 3}", "finer": f"c{a // 3}:{a}"},
        lambda rng, a: {"y": f"c{a // 3}", "year": 1990 + a},
        lambda rng, a: {"y": a + rng.random() / 2, "rounded": a},
        lambda rng, a: {"y": "f" if rng.random() < 0.97 else "m", "author": f"A{a}"},
        lambda rng, a: {"y": str(HALF[a // 2]), "few": f"v{a // 2}"},
    ],
    ids=["chance", "mostly", "the label", "finer label", "bins", "rounded", "one frequent label", "few values"],
)
def test_columns_that_do_not_fix_the_label_or_are_the_label_are_not_named(columns: Any) -> None:
    assert "of the column" not in warned(columns)


def test_a_value_that_the_text_has_is_left_to_the_baselines_of_texts() -> None:
    assert "of the column" not in warned(lambda rng, a: {"y": str(HALF[a]), "part": "w"})


def coinciding() -> tuple[Corpus, Any]:
    examples = [
        Example("a", "The cat sat", columns={"y": "x"}, split="train"),
        Example("b", "other words", columns={"y": "z"}, split="dev"),
        Example("c", "the CAT sat", columns={"y": "x"}, split="test"),
        Example("d", "the cat sat down", columns={"y": "z"}, split="test"),
        Example("e", "The  cat sat", columns={"y": "z"}, split="test"),
    ]
    inputs = {0: (1, "h"), 2: (1, "h"), 3: (1, "h"), 4: (1, "h")}
    return Corpus(tuple(examples)), inputs


def test_tests_whose_tokens_coincide_with_trains_are_counted_apart_from_copies() -> None:
    corpus, inputs = coinciding()
    split = np.array([e.split for e in corpus.examples])
    labels: Any = type("Rows", (), {"example": np.arange(5), "rows": lambda self, s: np.flatnonzero(split == s)})()
    assert alike_inputs(labels, corpus, inputs, np.array([3])) == {"alike_inputs": {"rows": 2, "cut": 1}}
    assert alike_inputs(labels, corpus, {}, np.array([3])) == {}


@pytest.mark.parametrize(
    ("rows", "cut", "shared", "named", "not_named"),
    [
        (0, 0, 4, ["all copies of a text"], ["differ", "tokenizer"]),
        (4, 4, 4, ["before they are cut at 64 tokens", "--long-inputs"], ["all copies", "tokenizer"]),
        (4, 0, 4, ["upper and lower case", "--group"], ["all copies", "cut"]),
        (3, 1, 4, ["of 1 of these", "of 2 of these", "all copies"], []),
    ],
)
def test_the_cause_of_equal_inputs_is_named(rows: int, cut: int, shared: int, named: Any, not_named: Any) -> None:
    facts: dict[str, Any] = {"shared_inputs": {"test": {"rows": shared, "texts": shared}}}
    facts |= {"alike_inputs": {"rows": rows, "cut": cut}, "cut_inputs": {"inputs": 9, "tokens": 64}}
    found = _way_out(facts, _OF_FILES)
    assert all(part in found for part in named) and not any(part in found for part in not_named)
