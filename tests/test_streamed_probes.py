"""Probes that train on rows of a store, block by block: the same answers as with all rows in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probing.errors import BadParameter
from probing.probes.linear import LinearProbe
from probing.probes.ridge import RidgeProbe
from probing.store import Store
from probing.store.row_blocks import RowBlocks
from tests.store_samples import whole, write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write(tmp_path / "s")
    return Store.open(tmp_path / "s")


def labels(X, k=3):
    return np.argmax(X[:, :k] + 0.5 * np.random.default_rng(0).normal(size=(len(X), k)), axis=1)


def streamed(store, rows=None):
    """Row blocks that never fit, though the sample is small."""
    blocks = RowBlocks(store, "resid.2", rows, budget=2**24)
    blocks.budget = 20_000
    assert not blocks.fits and len(list(blocks.blocks())) > 3
    return blocks


def test_row_blocks_are_the_states_in_the_order_asked(store):
    order = np.random.default_rng(0).permutation(store.n_rows)
    for rows in (None, order):
        blocks = streamed(store, rows)
        expected = store.read("resid.2", rows)
        assert blocks.shape == expected.shape and len(blocks.head(5)) == 5
        np.testing.assert_array_equal(np.concatenate([states for _, states in blocks.blocks()]), expected)
        np.testing.assert_array_equal(np.asarray(blocks.head(7)), expected[:7])
        assert next(start for start, _ in blocks.blocks()) == 0
    with pytest.raises(BadParameter, match="budget"):
        RowBlocks(store, "resid.2", budget=10)


def test_a_linear_probe_that_streams_finds_what_one_in_memory_finds(store):
    rows = np.random.default_rng(1).permutation(store.n_rows)
    X = whole("resid.2")[rows]
    y = labels(X)
    recipe = LinearProbe(l2=10.0, tolerance=1e-6)
    held, part = recipe.fit_many(X, [y, y // 2], [0]), recipe.fit_many(streamed(store, rows), [y, y // 2], [0])
    kept = recipe.fit_many(RowBlocks(store, "resid.2", rows), [y, y // 2], [0])
    for (a,), (b,), (c,) in zip(held, part, kept, strict=True):
        assert b.converged_ and b.objective_ == pytest.approx(a.objective_, rel=2e-5)
        np.testing.assert_allclose(b.coef_, a.coef_, atol=2e-3)
        np.testing.assert_array_equal(c.coef_, a.coef_)
        np.testing.assert_array_equal(a.predict_log_proba(streamed(store, rows)).argmax(1), a.predict(X) * 1)


def test_ridge_that_streams_is_the_same_closed_form(store):
    X = whole("resid.2")
    y = X[:, 0] - 2 * X[:, 1] + 5
    (held,), (part,) = (RidgeProbe().fit_many(rows, [y], [0])[0] for rows in (X, streamed(store)))
    np.testing.assert_allclose(part.coef_, held.coef_, atol=1e-9)
    np.testing.assert_allclose(part.predict(streamed(store)), held.predict(X), atol=1e-9)


def test_states_that_are_not_finite_are_refused_while_they_stream(store, monkeypatch):
    blocks = streamed(store)
    bad = [(start, np.where(start == 0, np.nan, states)) for start, states in blocks.blocks()]
    monkeypatch.setattr(RowBlocks, "blocks", lambda self: iter(bad))
    with pytest.raises(ValueError, match="NaN or infinity"):
        LinearProbe().fit_many(blocks, [np.arange(len(blocks)) % 2], [0])
