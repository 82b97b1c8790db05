"""A missing key, group, document or label never meets another: it is left out and counted, or stands alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from probing.controls.keyed import KeyedControl
from probing.errors import BadParameter, DegenerateDesign, UnknownName
from probing.recipes import build_task
from probing.reporting.task_results import by_task
from probing.reporting.warnings import warnings_of_task
from probing.text.corpus import Corpus, Example
from probing.text.example import named
from probing.training import train
from probing.training.labelling import label_rows
from probing.training.leaving_out import leave_one_out
from probing.training.row_facts import facts, with_keys
from tests.samples.training_samples import MemoryStore, vector_of, word_corpus, word_rows, word_store

BASE = word_corpus(types=48, words=6)


def with_lemmas(keep: float, seed: int = 0) -> Corpus:
    """Every word's lemma is its number over two; a share of them is kept."""
    random = np.random.default_rng(seed)
    examples = []
    for e in BASE.examples:
        lemmas = tuple(f"l{int(f[1:]) // 2}" if random.random() < keep else None for f in e.forms)
        examples.append(replace(e, word_columns={**e.word_columns, "lemma": lemmas}))
    return replace(BASE, examples=tuple(examples))


def selectivity(corpus: Corpus) -> Any:
    random = np.random.default_rng(3)
    store = word_store(corpus, lambda form, tag: vector_of(form, 40) + 0.1 * random.standard_normal(40))
    results = train(store, corpus, task="upos", controls=["keyed:key=lemma"], measures=["accuracy"], progress=False)
    return results, results.selectivity("accuracy")


def test_half_of_the_lemmas_give_the_selectivity_of_all_and_the_rows_without_are_counted() -> None:
    whole, half = selectivity(with_lemmas(1.0)), selectivity(with_lemmas(0.5))
    assert half[1].low <= whole[1].value <= half[1].high and abs(half[1].value - whole[1].value) < 0.03
    left = half[0][0].facts["excluded"]["no lemma"]
    assert left == sum(v is None for e in with_lemmas(0.5).examples for v in e.word_columns["lemma"])
    assert "no lemma" not in whole[0][0].facts["excluded"]
    assert any(f"{left:,} with no lemma" in line for line in warnings_of_task(by_task(list(half[0]))[0]))


def labelled(corpus: Corpus, **options: Any) -> Any:
    task = build_task("upos", corpus)
    return label_rows(word_rows(corpus), "word", corpus, task, **options)


def test_rows_without_a_key_are_refused_by_the_control_itself() -> None:
    labels = labelled(with_lemmas(0.9))
    with pytest.raises(DegenerateDesign, match=r"(?s)rows without a lemma.*without"):
        KeyedControl(key="lemma").apply(labels, draw=0, seed=0)
    kept = with_keys(labels, ["lemma"])
    assert 0 < len(kept) < len(labels) and (kept.keys["lemma"] >= 0).all()
    assert KeyedControl(key="lemma").apply(kept, draw=0, seed=0).seen is not None


def test_a_run_in_which_no_row_has_the_key_is_refused() -> None:
    corpus = with_lemmas(1.0)
    gone = tuple(
        replace(e, word_columns={**e.word_columns, "lemma": (None,) * len(e.words)}) if e.split == "test" else e
        for e in corpus.examples
    )
    with pytest.raises(DegenerateDesign, match="no labelled rows in test"):
        selectivity(replace(corpus, examples=gone))


def test_documents_that_are_missing_are_no_document_and_their_sentences_stand_alone() -> None:
    examples = [replace(e, document=f"d{i // 4}" if i % 2 else None) for i, e in enumerate(BASE.examples)]
    corpus = Corpus(tuple(replace(e, split=BASE.examples[i // 4 * 4].split) for i, e in enumerate(examples)))
    labels = labelled(corpus, resample_by="document")
    alone = [i for i, e in enumerate(corpus.examples) if e.document is None]
    groups = {int(labels.groups[labels.example == i][0]) for i in alone}
    assert len(groups) == len(alone)
    assert (labels.keys["document"][np.isin(labels.example, alone)] == -1).all()
    assert facts(labels, corpus)["alone"] == len(alone)


def test_a_document_and_an_example_s_id_of_the_same_name_are_two_groups() -> None:
    one = Example("x", "a b", split="train")
    other = Example("y", "c d", document="x", split="test")
    assert len(set(Corpus((one, other)).units.tolist())) == 2


def test_documents_asked_for_where_there_are_none_are_refused_with_the_way_out() -> None:
    with pytest.raises(BadParameter, match=r"(?s)no example names its document.*--group COLUMN"):
        labelled(BASE, resample_by="document")


@pytest.mark.parametrize("value", [None, "", "  ", math.nan])
def test_nothing_is_no_name(value: Any) -> None:
    assert named(value) is None


def test_an_empty_label_is_no_class_and_a_number_has_one_name() -> None:
    tags = [*"AB" * 20]
    examples = [Example(f"s{i}", f"text {i}", columns={"t": tag if i % 4 else ""}) for i, tag in enumerate(tags)]
    corpus = Corpus(tuple(examples)).with_random_split(0)
    states = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    rows = type("Rows", (), {"example": np.arange(40), "word": np.full(40, -1)})
    results = train(
        MemoryStore(corpus, {"resid.0": states}, rows, "sentence:mean"),
        corpus,
        task="column:t",
        measures=["accuracy"],
        progress=False,
    )
    assert results[0].classes == ("A", "B") and results[0].facts["excluded"] == {"no label": 10}
    assert named(3.0) == named(3) == "3"


def test_leave_one_out_refuses_sentences_with_an_empty_group() -> None:
    corpus = Corpus(tuple(replace(e, columns={"genre": "g" if i % 3 else ""}) for i, e in enumerate(BASE.examples)))
    store = word_store(corpus, lambda form, tag: vector_of(form, 4))
    with pytest.raises(DegenerateDesign, match="sentences without a genre"):
        leave_one_out(store, corpus, task="upos", group="genre")


def test_an_unknown_key_is_still_named_before_anything_is_left_out() -> None:
    store = word_store(BASE, lambda form, tag: vector_of(form, 4))
    with pytest.raises(UnknownName, match="key of the control"):
        train(store, BASE, task="upos", controls=["keyed:key=lema"], progress=False)
