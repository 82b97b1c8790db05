"""Laws of rows with several labels at once: read from text, scored as scikit-learn does, controls draw whole sets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.svm import LinearSVC

from probing.contracts.measure import Prediction
from probing.controls.shuffled_labels import ShuffledLabelsControl
from probing.controls.word_type import WordTypeControl
from probing.errors import BadParameter, DegenerateDesign
from probing.measures.accuracy import Accuracy
from probing.measures.log_loss import LogLoss
from probing.measures.macro_f1 import MacroF1
from probing.probes._each_label import EachLabelProbe
from probing.probes.linear import LinearProbe
from probing.text.corpus import Corpus
from probing.training import train
from probing.training.results import NO_SITE
from tests.samples.training_samples import word_corpus
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
