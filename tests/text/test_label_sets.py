"""Laws of rows with several labels at once: read from text, scored as scikit-learn does, controls draw whole sets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.svm import LinearSVC

from probing import registry
from probing.contracts.measure import Prediction
from probing.contracts.probe import Probe, RowBlocks
from probing.controls.shuffled_labels import ShuffledLabelsControl
from probing.controls.word_type import WordTypeControl
from probing.errors import BadParameter, DegenerateDesign
from probing.measures.accuracy import Accuracy
from probing.measures.log_loss import LogLoss
from probing.measures.macro_f1 import MacroF1
from probing.probes._each_label import EachLabelProbe
from probing.probes.linear import LinearProbe
from probing.states.store import Store
from probing.text.corpus import Corpus, Example
from probing.training import train
from probing.training.results import NO_SITE
from tests.samples.store_samples import write
from tests.samples.training_samples import SPLIT_SIZES, MemoryStore, word_corpus
from tests.samples.tree_samples import store_of
from tests.tasks.test_places import labelled


def sets_of(corpus: Corpus, seed: int = 0) -> tuple[Corpus, np.ndarray[Any, Any]]:
    """A word has `low` and `odd`, each by lot, and `all` always."""
    random = np.random.default_rng(seed)
    bits = random.random((len(corpus), 8, 2)) < 0.4
    names = np.array(["low", "odd"])
    return Corpus(
        tuple(
            replace(e, word_columns={"props": tuple("|".join(["all", *names[row]]) for row in of_one)})
            for e, of_one in zip(corpus.examples, bits, strict=True)
        )
    ), bits.reshape(-1, 2)


CORPUS, BITS = sets_of(word_corpus())
LABELS = labelled("column:props:labels", CORPUS)


def test_label_sets_are_read_from_separated_texts_and_json_lists() -> None:
    assert LABELS.classes == ("all", "low", "odd") and LABELS.kind == "labels"
    np.testing.assert_array_equal(LABELS.y, np.concatenate([np.ones((len(BITS), 1)), BITS], axis=1))
    listed = Corpus(
        tuple(
            replace(e, word_columns={"props": ('["a b", "c"]', "[]", None, "", " c | a b|", "[c", "c", "c")})
            for e in CORPUS.examples
        )
    )
    labels = labelled("column:props:labels", listed)
    assert labels.classes == ("[c", "a b", "c") and labels.excluded == {"no label": len(listed)}
    assert labels.y[:7].tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_columns_whose_labels_tell_no_rows_apart_are_refused() -> None:
    for value in ("a|b", ""):
        same = Corpus(tuple(replace(e, word_columns={"props": (value,) * 8}) for e in CORPUS.examples))
        with pytest.raises(DegenerateDesign, match="no label tells train rows apart"):
            labelled("column:props:labels", same)
    other = Corpus(
        tuple(replace(e, word_columns={"props": ("xyz",) * 8}) if e.split == "test" else e for e in CORPUS.examples)
    )
    with pytest.raises(DegenerateDesign, match="no label of test occurs in train"):
        labelled("column:props:labels", other)


def test_measures_of_label_sets_are_exact_match_macro_f1_and_bits_per_row() -> None:
    random = np.random.default_rng(1)
    y, values = random.integers(0, 2, (2, 300, 4))
    p = random.uniform(0.05, 0.95, (300, 4))
    said = Prediction(values, np.log(np.stack([1 - p, p], axis=2)))
    assert Accuracy().value(y, said) == pytest.approx((y == values).all(axis=1).mean())
    assert MacroF1().value(y, said) == pytest.approx(f1_score(y, values, average="macro"))
    assert LogLoss().value(y, said) == pytest.approx(-np.log2(np.where(y, p, 1 - p)).sum(axis=1).mean())


def test_controls_draw_whole_sets_of_labels() -> None:
    made = WordTypeControl().apply(LABELS, draw=0, seed=0)
    known = {tuple(row) for row in LABELS.y[LABELS.rows("train")].tolist()}
    assert {tuple(row) for row in made.y.tolist()} <= known and made.ceiling is not None
    pairs = np.unique(np.concatenate([made.keys["type"][:, None], made.y], axis=1), axis=0)
    assert len(pairs) == len(np.unique(made.keys["type"])) and len(np.unique(made.codes)) > 2
    shuffled = ShuffledLabelsControl().apply(LABELS, draw=0, seed=0)
    train_rows = LABELS.rows("train")
    assert (np.bincount(shuffled.codes[train_rows]) == np.bincount(LABELS.codes[train_rows])).all()


def test_each_label_is_fitted_as_it_would_be_alone_and_one_that_all_rows_have_is_sure() -> None:
    X = np.random.default_rng(0).standard_normal((400, 5)).astype(np.float32)
    y = np.stack([np.ones(400), X[:, 0] > 0, X[:, 1] + X[:, 2] > 0.5], axis=1).astype(np.int64)
    probe = EachLabelProbe(LinearProbe(tolerance=1e-6)).fit(X, y)
    np.testing.assert_array_equal(probe.predict(X)[:, 0], 1)
    for c in (1, 2):
        alone = LinearProbe(tolerance=1e-6).fit(X, y[:, c])
        np.testing.assert_allclose(np.exp(probe.log_probabilities(X)[:, c]), alone.predict_proba(X), atol=1e-4)
    assert probe.log_probabilities(X)[0, 0].tolist() == [-np.inf, 0.0]
    with pytest.raises(BadParameter, match="cannot be saved"):
        probe.state()


def test_states_that_hold_every_label_give_all_of_them_with_selectivity() -> None:
    store = store_of(CORPUS, BITS + 0.1 * np.random.default_rng(0).standard_normal(BITS.shape))
    results = train(
        store,
        CORPUS,
        task="column:props:labels",
        probes=["linear", LinearSVC()],
        controls=["word_type:draws=5"],
        progress=False,
    )
    best = results.best(probe="linear")
    for name in ("macro_f1", "accuracy"):
        found = best.measure(name)
        assert found.score.value > 0.95 and found.comparisons[0].selectivity.low > 0.0
        assert {gain.baseline for gain in found.gains} == {"prior", "word_type"}
    assert best.measure("log_loss").score.value < 0.5 and not best.confusion
    svm = next(r for r in results if r.site != NO_SITE and r is not best)
    assert svm.measure("accuracy").score.value > 0.95 and "log_loss" not in {m.measure for m in svm.measures}


def test_probe_of_each_label_is_given_what_its_base_probe_is_given() -> None:
    attributes = [name for name in Probe.__annotations__ if hasattr(Probe, name) and not name.startswith("_")]
    passed = sorted(set(attributes) - {"kinds", "device", "about"})
    assert {"input", "input_as_text", "accepts_blocks"} <= set(passed)
    for name in registry.names("probes"):
        base = registry.get("probes", name).MEMBER()
        for wrapped in (base, base.on("cpu:0")):
            each = EachLabelProbe(wrapped)
            assert {one: getattr(each, one) for one in passed} == {one: getattr(wrapped, one) for one in passed}, name
        assert EachLabelProbe(base).on("cpu:0").device == EachLabelProbe(base).on("cpu:0").base.device == wrapped.device


def test_streamed_states_give_each_label_what_states_in_memory_give(tmp_path: Path) -> None:
    write(tmp_path / "store")
    blocks = RowBlocks(Store.open(tmp_path / "store"), "resid.2", budget=2**24)
    blocks.budget = 20_000
    X = np.asarray(blocks)
    y = (X[:, :2] + 0.5 * np.random.default_rng(0).standard_normal((len(X), 2)) > 0).astype(np.int64)
    probe = EachLabelProbe(LinearProbe(l2=10.0, tolerance=1e-6))
    held, streamed = (probe.fit_many(rows, [y], [0])[0][0] for rows in (X, blocks))  # type: ignore[arg-type]
    assert not blocks.fits and len(list(blocks.blocks())) > 3
    np.testing.assert_allclose(held.log_probabilities(X), streamed.log_probabilities(blocks), atol=1e-2)
    assert (held.predict(X) == streamed.predict(blocks)).mean() > 0.99


def sentence_sets(names: tuple[str, ...]) -> tuple[MemoryStore, Corpus]:
    """Sentences of random words and three kinds of length, and the labels of those of `names` that are among them."""
    random, examples, states = np.random.default_rng(0), [], []
    for split, count in SPLIT_SIZES.items():
        for number in range(count):
            words = random.choice(["cat", "dog", "red", *(f"w{i}" for i in range(20))], random.integers(4, 12)).tolist()
            text = " ".join(words)
            own = [*(name for name in ("cat", "dog", "red") if name in words), *(["long"] if len(words) > 7 else [])]
            held = [name for name in own if name in names]
            column = json.dumps(held) if len(names) > 1 else (held or ["none"])[0]
            spans = tuple(match.span() for match in re.finditer(r"\S+", text))
            examples.append(Example(f"{split}-{number}", text, words=spans, columns={"own": column}, split=split))
            states.append(random.standard_normal(2))
    corpus = Corpus(tuple(examples))
    rows = SimpleNamespace(example=np.arange(len(examples)), word=np.full(len(examples), -1))
    return MemoryStore(corpus, {"resid.0": np.array(states, np.float32)}, rows, "sentence:mean"), corpus


def test_each_baseline_gives_each_label_what_it_gives_a_task_of_that_label_alone() -> None:
    names = ("cat", "dog", "red", "long")

    def baselines(names: tuple[str, ...]) -> dict[tuple[str, str, str], float]:
        task = "column:own:labels" if len(names) > 1 else "column:own:classes"
        options: dict[str, Any] = {"measures": ["log_loss", "accuracy"], "controls": [], "progress": False}
        results = train(*sentence_sets(names), task=task, **options)
        return {
            (result.probe, found.measure, found.split): found.score.value
            for result in results
            for found in result.measures
            if result.site == NO_SITE
        }

    together, alone = baselines(names), [baselines((name,)) for name in names]
    texts = {"text_length", "bag_of_words", "tfidf", "character_ngrams", "nearest_text"}
    assert {probe for probe, *_ in together} == {"prior", *texts}
    for (probe, measure, split), value in together.items():
        of_each = [one[probe, measure, split] for one in alone]
        if measure == "log_loss":  # of several labels it is their sum, in bits per row
            assert value == pytest.approx(sum(of_each), abs=0.02), (probe, split)
    assert together["prior", "log_loss", "test"] > together["text_length", "log_loss", "test"] + 0.3
    assert together["bag_of_words", "accuracy", "test"] > together["prior", "accuracy", "test"] + 0.3
