"""Texts whose label one of a few words decides are noticed, and others seldom; `use` warns of them unless grouped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import probing as pb
from probing.text.deciding_words import deciding_words
from probing.use.subjects import Subjects


def texts_of(seed: int, items: int, n: int = 800) -> tuple[list[str], list[int]]:
    """Texts of an item among other words of a large vocabulary, and the number of the item."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(items, size=n)
    around = rng.integers(300, size=(n, 3))
    return [f"the item{k} v{a} v{b} w{c} again" for k, (a, b, c) in zip(chosen, around, strict=True)], chosen.tolist()


@pytest.mark.parametrize("items", [20, 64, 90])
def test_items_that_decide_the_label_are_noticed(items: int) -> None:
    for seed in range(20):
        texts, chosen = texts_of(seed, items)
        label_of = np.random.default_rng(1000 + seed).integers(2, size=items)
        words = deciding_words(texts, [int(label_of[k]) for k in chosen])
        assert items * 0.8 <= len(words) <= items * 1.2
        assert sum(word.startswith("item") for word in words) >= 0.8 * len(words)


def test_labels_that_no_word_decides_are_left_alone() -> None:
    for seed in range(40):
        texts, _ = texts_of(seed, 64)
        assert deciding_words(texts, np.random.default_rng(1000 + seed).integers(2, size=len(texts)).tolist()) == ()


def test_marks_of_the_label_and_words_of_one_text_are_no_items() -> None:
    texts, chosen = texts_of(0, 64)
    mark = [k % 2 for k in range(len(texts))]
    assert deciding_words([f"{t} {('was', 'is')[m]}" for t, m in zip(texts, mark, strict=True)], mark) == ()
    assert deciding_words([f"name{k} {t}" for k, t in enumerate(texts)], mark) == ()
    assert deciding_words(texts[:50], chosen[:50]) == ()


def test_use_warns_of_them_unless_the_corpus_is_grouped() -> None:
    texts, chosen = texts_of(1, 40)
    corpus = pb.Corpus.from_texts(texts, {"kind": [("a", "b")[k % 2] for k in chosen]})
    given: dict[str, Any] = {"sites": "resid.1", "positions": ["end"], "covariates": [], "split": None, "max_rows": 100}
    model: Any = None  # which the check of texts does not run

    def doubts(corpus: pb.Corpus) -> tuple[str, ...]:
        return Subjects(model, corpus, ["column:kind"], "next_token:answers=was|is", seed=0, **given).doubts(
            "column:kind"
        )

    (doubt,) = doubts(corpus)
    assert "about 40 words" in doubt and "--group" in doubt
    grouped = [replace(e, document=f"item{k}") for e, k in zip(corpus.examples, chosen, strict=True)]
    assert doubts(replace(corpus, examples=tuple(grouped))) == ()
