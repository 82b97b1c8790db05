"""A label in one piece of many is read by attention and drowned by the mean; ragged rows keep their pieces."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from probing.errors import BadParameter, DegenerateDesign
from probing.labels import Pieces
from probing.models.language_model import LanguageModel
from probing.probes.attention_pooling import AttentionPoolingProbe
from probing.probes.linear import LinearProbe
from probing.states.extraction import extract
from probing.text.corpus import Corpus
from probing.training import train
from probing.training.pooling import PooledStore
from tests.conftest import ROOT

MODEL = ROOT / "datasets" / "reference" / "model"


def needle(n, seed=0, width=16):
    """8 to 24 pieces a row; one, at random, carries a mark and the label, the others carry labels without the mark."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(8, 25, n)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    y = rng.integers(2, size=n)
    states = rng.normal(size=(bounds[-1], width))
    states[:, 0] = 3.0 * (2 * rng.integers(2, size=len(states)) - 1)
    place = bounds[:-1] + rng.integers(counts)
    states[place, 0], states[place, 1] = 3.0 * (2 * y - 1), 6.0
    return Pieces(states.astype(np.float32), bounds), y, place


def test_attention_finds_the_piece_that_carries_the_label_and_the_mean_does_not():
    (X, y, _), (X_dev, y_dev, _), (X_test, y_test, place) = needle(1500), needle(300, 1), needle(1000, 2)
    mean = LinearProbe().fit(X, y).score(X_test, y_test)
    probe = AttentionPoolingProbe().fit(X, y, dev=(X_dev, y_dev))
    assert mean < 0.8
    assert probe.score(X_test, y_test) >= 0.95
    weights = probe.attention(X_test)
    np.testing.assert_allclose(np.add.reduceat(weights, X_test.bounds[:-1]), 1.0)
    assert weights[place].mean() > 0.8


def test_pieces_are_their_mean_to_everyone_else():
    X = needle(50)[0]
    means = np.stack([X.states[a:b].mean(0) for a, b in zip(X.bounds[:-1], X.bounds[1:], strict=True)])
    np.testing.assert_allclose(np.asarray(X), means, rtol=1e-4, atol=1e-6)
    assert X.shape == (50, 16) and len(X) == 50 and np.asarray(X).dtype == np.float32
    for rows in (np.array([3, 1, 3]), slice(5, 9), np.arange(50) % 2 == 0):
        np.testing.assert_array_equal(np.asarray(X[rows]), np.asarray(X)[rows])
    for bounds in ([0, 2, 2, len(X.states)], [1, len(X.states)], [0, 5]):
        with pytest.raises(ValueError, match="do not cut"):
            Pieces(X.states, np.array(bounds))


def test_the_order_of_pieces_and_of_rows_does_not_matter():
    X, y, _ = needle(200)
    probe = AttentionPoolingProbe(max_epochs=3).fit(X, y)
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in pairwise(X.bounds)])

    before = probe.predict_log_proba(X)
    np.testing.assert_allclose(probe.predict_log_proba(Pieces(X.states[order], X.bounds)), before, atol=1e-9)
    np.testing.assert_allclose(probe.predict_log_proba(X[np.arange(200)[::-1]]), before[::-1], atol=1e-9)


def test_on_plain_rows_it_is_about_as_good_as_the_linear_probe():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=2000)
    X = (rng.normal(size=(3, 8))[y] + rng.normal(size=(2000, 8))).astype(np.float32)
    probe = AttentionPoolingProbe().fit(X[:1000], y[:1000])
    linear = LinearProbe().fit(X[:1000], y[:1000]).score(X[1000:], y[1000:])
    assert probe.score(X[1000:], y[1000:]) == pytest.approx(linear, abs=0.02)


def test_it_repeats_by_seed_says_when_it_ran_out_of_epochs_and_refuses_what_it_cannot_score():
    X, y, _ = needle(200)
    first, again, other = (AttentionPoolingProbe(random_state=s, max_epochs=2).fit(X, y) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.query_, again.query_)
    assert not np.array_equal(first.query_, other.query_) and not first.converged_
    with pytest.raises(DegenerateDesign, match="no dev row"):
        AttentionPoolingProbe().fit(X, y, dev=(X, y + 9))
    with pytest.raises(BadParameter, match="patience"):
        AttentionPoolingProbe(patience=0).fit(X, y)


def test_a_piece_store_hands_over_its_pieces_and_another_store_cannot(
    tmp_path: Path, small_corpus: dict[str, Path]
) -> None:
    corpus = Corpus.read({split: str(file) for split, file in small_corpus.items()})
    options = {"task": "column:tense", "probes": ["attention_pooling", "linear"], "controls": [], "progress": False}
    model = LanguageModel.load(str(MODEL))
    store = extract(model, corpus, sites="resid.1", rows="piece", to=tmp_path / "p", progress=False)
    results = train(store, corpus, **options, to=tmp_path / "r")
    found = {r.probe: r for r in results if r.site == "resid.1"}
    assert set(found) == {"attention_pooling", "linear"}
    (accuracy,) = [m for m in found["attention_pooling"].measures if (m.measure, m.split) == ("accuracy", "test")]
    assert accuracy.score.value > 0.9
    labels_read = PooledStore(store, corpus, "sentence:mean")
    pieces = labels_read.pieces("resid.1", np.array([4, 0]))
    np.testing.assert_allclose(np.asarray(pieces), labels_read.read("resid.1", np.array([4, 0])), atol=1e-5)
    pooled = extract(model, corpus, sites="resid.1", rows="sentence:mean", to=tmp_path / "s", progress=False)
    with pytest.raises(BadParameter, match="--rows piece"):
        train(pooled, corpus, **options)
