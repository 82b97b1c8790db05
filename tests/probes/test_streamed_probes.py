"""Probes that train on rows of a store, block by block: the same answers as with all rows in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from probing.contracts.probe import RowBlocks
from probing.errors import BadParameter
from probing.probes._rows import StreamedMoments
from probing.probes.linear import LinearProbe
from probing.probes.ridge import RidgeProbe
from probing.states.store import Store
from tests.samples.store_samples import whole, write


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
        assert next(iter(blocks.blocks()))[0] == 0
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


def test_ridge_reads_the_rows_once_for_all_targets(store, monkeypatch):
    blocks, read = streamed(store), []
    known = RowBlocks.blocks
    monkeypatch.setattr(RowBlocks, "blocks", lambda self: (read.append(part[0]) or part for part in known(self)))
    RidgeProbe().fit_many(blocks, [np.arange(len(blocks)), np.arange(len(blocks)) % 3], [0, 1])
    assert len(read) > 3 and read == sorted(set(read))


def sixteenths(n, width, seed=0):
    """Correlated columns that are multiples of 1/16, so that large offsets add without rounding."""
    rng = np.random.default_rng(seed)
    return np.round(16 * rng.normal(size=(n, width)) @ rng.normal(size=(width, width))) / 16


@pytest.mark.parametrize("l2", [0.0, 7.0])
def test_ridge_is_scikit_learns_on_standardised_states(l2):
    X, noise = sixteenths(3000, 12), np.random.default_rng(1).normal(size=3000)
    for y in (X[:, 0] - X[:, 3] + noise, 1e4 + noise):
        fit = RidgeProbe(l2=l2).fit(X, y)
        oracle = Ridge(alpha=l2).fit(StandardScaler().fit_transform(X), y)
        np.testing.assert_allclose(fit.coef_, oracle.coef_, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(fit.intercept_, oracle.intercept_, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose([fit.mean_, fit.scale_**2], [X.mean(0), X.var(0)], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sort", [False, True])
def test_an_offset_of_ten_thousand_deviations_changes_nothing(sort):
    """Also where the first block, around whose mean sums are taken, lies far from the rest."""
    X = sixteenths(20_000, 8)
    X = X[np.argsort(X[:, 0])] if sort else X
    y = X @ np.arange(8.0) + np.random.default_rng(1).normal(size=len(X))
    plain, moved = StreamedMoments.of(X, [y]), StreamedMoments.of(X + 2.0**17, [y])
    assert np.all(1e4 * plain.scale < 2.0**17)
    np.testing.assert_allclose(moved.mean - 2.0**17, plain.mean, atol=1e-9)
    np.testing.assert_allclose(moved.scale, plain.scale, rtol=1e-12)
    np.testing.assert_allclose(moved.correlations, np.corrcoef(X.T), atol=1e-12)
    np.testing.assert_allclose(moved.products, plain.products, rtol=1e-10, atol=1e-12)


def test_a_constant_column_becomes_zero_and_weighs_nothing():
    X = sixteenths(3000, 4)
    X[:, 1], X[:, 2] = 1e6 / 3, 0.1
    y = X[:, 0] + 5
    sums = StreamedMoments.of(X, [y])
    assert sums.scale[[1, 2]].tolist() == [1, 1] and not sums.correlations[1:3].any() and not sums.products[1:3].any()
    np.testing.assert_array_equal(sums.centred, sums.centred.T)
    for l2 in (0.0, 1.0):
        fit = RidgeProbe(l2=l2).fit(X, y)
        rest = RidgeProbe(l2=l2).fit(X[:, [0, 3]], y)
        np.testing.assert_allclose(fit.coef_, [rest.coef_[0], 0, 0, rest.coef_[1]], atol=1e-12)


def test_ridge_without_penalty_is_the_solution_of_least_norm():
    X = sixteenths(20, 50)
    y = np.random.default_rng(2).normal(size=20)
    oracle = np.linalg.lstsq(StandardScaler().fit_transform(X), y - y.mean(), rcond=1e-9)[0]
    np.testing.assert_allclose(RidgeProbe(l2=0.0).fit(X, y).coef_, oracle, atol=1e-8)


def test_states_that_are_not_finite_are_refused_while_they_stream(store, monkeypatch):
    blocks = streamed(store)
    bad = [(start, np.where(start == 0, np.nan, states)) for start, states in blocks.blocks()]
    monkeypatch.setattr(RowBlocks, "blocks", lambda self: iter(bad))
    for probe in (LinearProbe(), RidgeProbe()):
        with pytest.raises(ValueError, match="NaN or infinity"):
            probe.fit_many(blocks, [np.arange(len(blocks)) % 2], [0])
