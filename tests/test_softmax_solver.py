"""The batched solver against scikit-learn, its oracle."""

from __future__ import annotations

from functools import partialmethod

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from probing.errors import BadParameter
from probing.probes import _rows, _softmax_parts, _softmax_start
from probing.probes._standardise import moments, standardise
from probing.probes.linear import LinearProbe


def planted(n, d, k, *, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3).astype(np.float32)
    W = rng.normal(size=(d, k)) / d
    y = np.argmax(X @ W + noise * rng.gumbel(size=(n, k)), axis=1)
    y[:k] = np.arange(k)
    return X, y


def objective(X, y, W, b, l2, binary):
    Z = X.astype(np.float64) @ W + b
    Z -= Z.max(1, keepdims=True)
    loss = (np.log(np.exp(Z).sum(1)) - Z[np.arange(len(y)), y]).mean()
    return loss + (2 if binary else 1) * 0.5 * l2 / len(y) * (W**2).sum()


@pytest.mark.parametrize(
    "n, d, k", [(60, 100, 2), (60, 100, 3), (90, 20, 17), (3000, 20, 2), (20_000, 16, 3), (20_000, 16, 17)]
)
@pytest.mark.parametrize("l2", [1.0, 30.0])
def test_objective_is_scikit_learns(n, d, k, l2):
    X, y = planted(n, d, k)
    probe = LinearProbe(l2=l2, tolerance=1e-6).fit(X, y)
    Z = standardise(X, *moments(X)).astype(np.float64)
    oracle = LogisticRegression(C=1 / l2, tol=1e-7, max_iter=5000).fit(Z, y)
    W, b = (oracle.coef_.T, oracle.intercept_)
    if k == 2:
        W, b = np.hstack([-W / 2, W / 2]), np.array([-b[0] / 2, b[0] / 2])
    best = objective(Z, y, W, b, l2, k == 2)
    ours = objective(Z, y, probe.coef_, probe.intercept_, l2, k == 2)
    assert probe.converged_
    assert ours <= best * (1 + 1e-4)
    assert probe.objective_ == pytest.approx(ours, rel=1e-5)
    assert (probe.predict(X) == oracle.predict(Z)).mean() > 0.995


def test_label_sets_of_different_widths_fit_together_as_they_do_alone():
    X, y = planted(2000, 12, 7)
    targets = [y, y % 2, y % 3]
    for row, labels in zip(LinearProbe(tolerance=1e-6).fit_many(X, targets, [0, 5]), targets, strict=True):
        alone = LinearProbe(tolerance=1e-6).fit(X, labels)
        assert row[0].objective_ == pytest.approx(alone.objective_, rel=2e-5)
        np.testing.assert_allclose(row[0].predict_proba(X), alone.predict_proba(X), atol=5e-3)
        np.testing.assert_array_equal(row[0].coef_, row[1].coef_)


def test_small_memory_changes_the_grouping_and_not_the_answer(monkeypatch):
    X, y = planted(1500, 10, 4)
    targets = [y, (y + 1) % 4 // 2, y // 2]
    wide = LinearProbe(tolerance=1e-6).fit_many(X, targets, [0])
    monkeypatch.setattr(_rows.HeldRows, "__init__", partialmethod(_rows.HeldRows.__init__, budget=1))
    monkeypatch.setattr(_softmax_parts, "_BLOCK_ELEMENTS", 1)
    narrow = LinearProbe(tolerance=1e-6).fit_many(X, targets, [0])
    for (a,), (b,) in zip(wide, narrow, strict=True):
        assert b.objective_ == pytest.approx(a.objective_, rel=3e-5)


def test_separable_data_converges_to_a_finite_optimum():
    X = np.vstack([np.full((50, 3), -1.0), np.full((50, 3), 1.0)]) + 0.01 * np.random.default_rng(0).normal(
        size=(100, 3)
    )
    probe = LinearProbe(l2=1e-3).fit(X, np.repeat(["no", "yes"], 50))
    assert probe.converged_ and np.isfinite(probe.coef_).all() and probe.score(X, np.repeat(["no", "yes"], 50)) == 1.0


@pytest.mark.parametrize("scale, offset", [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e4)])
def test_units_and_offsets_of_the_states_do_not_matter(scale, offset):
    X, y = planted(800, 8, 3)
    X = X.astype(np.float64)
    plain, moved = LinearProbe(tolerance=1e-6).fit(X, y), LinearProbe(tolerance=1e-6).fit(X * scale + offset, y)
    np.testing.assert_allclose(moved.predict_proba(X * scale + offset), plain.predict_proba(X), atol=2e-3)


def test_running_out_of_iterations_is_said():
    X, y = planted(500, 30, 5)
    assert not LinearProbe(max_iterations=1).fit(X, y).converged_


def test_nan_states_and_bad_options_are_refused():
    X, y = planted(50, 4, 2)
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        LinearProbe().fit(X, y)
    with pytest.raises(BadParameter):
        LinearProbe(l2=-1.0).fit(np.nan_to_num(X), y)


def test_importance_sampling_estimates_the_weighted_gram():
    source = torch.Generator().manual_seed(0)
    rows, weights = torch.randn(50_000, 5, generator=source), torch.rand(50_000, generator=source) ** 4
    exact = (rows * weights.unsqueeze(1)).T @ rows / 50_000
    sampled = _softmax_start.weighted_gram(rows, weights, 8000, source)
    torch.testing.assert_close(sampled, exact, atol=0.02, rtol=0.06)


def test_the_caller_thread_count_and_global_generator_are_left_alone():
    X, y = planted(300, 5, 3)
    before = torch.get_rng_state(), torch.get_num_threads()
    LinearProbe().fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.get_num_threads() == before[1]
