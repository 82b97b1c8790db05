"""Copies of a text are one input: for splits, resampling, folds and what is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probing.recipes import build_task
from probing.reporting.task_results import by_task
from probing.reporting.warnings import warnings_of_task
from probing.statistics.bootstrap import Clusters
from probing.text.corpus import Corpus, Example
from probing.training import train
from probing.training.labelling import label_agreement, label_rows
from probing.verdicts.decodability import NOT_JUDGED, judged
from tests.samples.training_samples import MemoryStore, word_rows

FORMS = [f"{a}{b}" for a in "bdfgklmn" for b in ("a", "e", "i", "o", "u", "ai", "oi", "au")]

WIDTH = 700  # more than there are different words in their sentences: a linear probe can learn all of them by heart


def sentence(number: int, random: np.random.Generator, **more: Any) -> Example:
    """Six words; every word has a tag by lot."""
    forms = random.choice(FORMS, 6)
    starts = np.cumsum([0, *(len(form) + 1 for form in forms[:-1])]).tolist()
    words = tuple((s, s + len(form)) for s, form in zip(starts, forms, strict=True))
    tags = tuple("XY"[k] for k in random.integers(0, 2, 6))
    return Example(f"s{number}", " ".join(forms), words, word_columns={"tag": tags}, **more)


def copied(texts: int = 40, copies: int = 6, seed: int = 0) -> Corpus:
    random = np.random.default_rng(seed)
    originals = [sentence(i, random) for i in range(texts)]
    places = random.permutation(np.repeat(np.arange(texts), copies)).tolist()
    return Corpus(tuple(replace(originals[t], id=f"c{i}") for i, t in enumerate(places)))


def store_of(corpus: Corpus) -> MemoryStore:
    """Every word of every text has a state of its own, the same in all copies: a probe learns it by heart."""
    state = {}
    random = np.random.default_rng(7)
    for e in corpus.examples:
        for w in range(len(e.words)):
            state.setdefault((e.text, w), random.standard_normal(WIDTH))
    rows = word_rows(corpus)
    keys = [(corpus.examples[e].text, w) for e, w in zip(rows.example.tolist(), rows.word.tolist(), strict=True)]
    return MemoryStore(corpus, {"resid.0": np.array([state[key] for key in keys], np.float32)}, rows)


def trained(corpus: Corpus, **options: Any) -> Any:
    return train(store_of(corpus), corpus, task="column:tag", measures=["accuracy"], progress=False, **options)


def test_copies_of_a_text_never_cross_the_random_split_however_they_are_typed() -> None:
    corpus = copied()
    odd = tuple(replace(e, text=e.text.replace(" ", "  ") if i % 2 else e.text) for i, e in enumerate(corpus.examples))
    split = replace(corpus, examples=odd).with_random_split(0)
    homes: dict[str, set[str]] = {}
    for e in split.examples:
        homes.setdefault(" ".join(e.text.split()), set()).add(e.split)
    assert all(len(of) == 1 for of in homes.values()) and set.union(*homes.values()) == {"train", "dev", "test"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_at_random_of_copied_texts_are_never_called_decodable(seed: int) -> None:
    (best,) = [r for r in trained(copied(200, 5).with_random_split(seed)) if r.site == "resid.0"]
    assert judged(best, best.judged("accuracy")).status not in ("decodable", "selectively decodable")
    assert best.facts["clusters"]["test"] == best.facts["sentences"]["test"] == 20


def test_given_splits_that_share_inputs_warn_and_are_judged_on_the_other_rows() -> None:
    """By heart, a probe is right on the copies; of the new sentences it knows nothing."""
    corpus = copied(100, 3)
    splits = np.random.default_rng(1).choice(["train", "dev", "test"], len(corpus), p=[0.4, 0.2, 0.4]).tolist()
    new = [sentence(900 + i, np.random.default_rng(50 + i), split="test") for i in range(60)]
    new += [sentence(970 + i, np.random.default_rng(150 + i), split="dev") for i in range(20)]
    examples = [replace(e, split=s) for e, s in zip(corpus.examples, splits, strict=True)]
    results = trained(Corpus((*examples, *new)))
    best = results.best()
    whole, fresh = best.measure("accuracy"), best.judged("accuracy")
    assert fresh.split == "test_new" and fresh.score.n < whole.score.n
    assert whole.score.value > 0.62 and fresh.score.value < 0.55
    assert judged(best, fresh).status == "not shown to be decodable"
    frame = results.long()
    assert set(frame[frame.split == "test"].status.dropna()) == set()
    assert set(frame[(frame.split == "test_new") & (frame.site != "(none)")].status) == {"not shown to be decodable"}
    said = " ".join(warnings_of_task(by_task(list(results))[0]))
    assert f"{best.facts['shared_inputs']['test']['rows']:,} test rows" in said and "on all rows it is" in said


def test_nothing_is_judged_where_train_has_every_input_of_test() -> None:
    corpus = copied(60, 8)
    splits = [("train", "train", "dev", "test")[i % 4] for i in range(len(corpus))]
    results = trained(Corpus(tuple(replace(e, split=s) for e, s in zip(corpus.examples, splits, strict=True))))
    best = results.best()
    assert best.judged_split() == "test" and best.measure("accuracy").score.value > 0.9
    assert judged(best, best.judged("accuracy")).status == NOT_JUDGED
    assert any("NOT JUDGED: all" in line for line in warnings_of_task(by_task(list(results))[0]))


def test_a_jsonl_file_and_its_grouped_twin_give_the_same_words(tmp_path: Path) -> None:
    said = {}
    for name in ("plain", "grouped"):
        lines = [
            {"words": list(e.forms), "tag": list(e.word_columns["tag"])}
            | ({"group": e.text} if name == "grouped" else {})
            for e in copied(40, 8).examples
        ]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        best = trained(Corpus.read(file)).best()
        said[name] = judged(best, best.judged("accuracy")).status, best.facts["sentences"], best.facts["clusters"]
    assert said["plain"] == said["grouped"] and said["plain"][0] == NOT_JUDGED  # four different sentences in test


def documents(label: str, seed: int = 0) -> Corpus:
    random = np.random.default_rng(seed)
    sizes = np.maximum(2, 60 / np.arange(1, 31)).astype(int)
    examples = []
    for d, size in enumerate(sizes):
        of_document = "XY"[random.integers(2)]
        for _ in range(size):
            own = "XY"[random.integers(2)] if label == "free" or (label == "mostly" and random.random() < 0.1) else ""
            more = {"columns": {"label": own or of_document}, "document": f"d{d}"}
            examples.append(sentence(len(examples), random, **more))
    return Corpus(tuple(examples)).with_random_split(seed)


@pytest.mark.parametrize(("label", "unit"), [("constant", "document"), ("mostly", "document"), ("free", "sentence")])
def test_documents_are_resampled_where_the_label_is_constant_in_them(label: str, unit: str) -> None:
    corpus = documents(label)
    task = build_task("column:label", corpus)
    rows = MemoryStore(corpus, {}, None)
    rows.rows = type("Rows", (), {"example": np.arange(len(corpus)), "word": np.full(len(corpus), -1)})
    labels = label_rows(rows.rows, "sentence", corpus, task)
    assert labels.unit == unit
    assert label_agreement(labels, corpus) == pytest.approx({"constant": 1, "mostly": 0.81, "free": 0}[label], abs=0.15)
    assert (labels.unit_reason == "") == (unit == "sentence")
    assert label_rows(rows.rows, "sentence", corpus, task, resample_by="sentence").unit == "sentence"


def test_uneven_clusters_stand_for_fewer_and_their_variance_is_corrected() -> None:
    assert Clusters.of_sizes(np.ones(12)).df == pytest.approx(11)
    assert Clusters.of_sizes(np.ones(12)).inflation == pytest.approx(12 / 11)
    sizes = np.maximum(1, 100 / np.arange(1, 21))
    found = Clusters.of_sizes(sizes)
    assert found.effective == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum()) and found.df < found.effective < 20
    random = np.random.default_rng(0)
    w = sizes / sizes.sum()
    u = random.standard_normal((20000, 20))
    seen = ((w * (u - (u @ w)[:, None])) ** 2).sum(1)
    assert found.inflation == pytest.approx(float(w @ w) / seen.mean(), rel=0.03)
    assert found.df == pytest.approx(2 * seen.mean() ** 2 / seen.var(), rel=0.1)
