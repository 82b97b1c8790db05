"""The batched solver against scikit-learn, its oracle."""

from __future__ import annotations

from functools import partialmethod

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from probing.errors import BadParameter
from probing.models.cpu_speed import can_pack
from probing.probes import _rows, _softmax_curvature, _softmax_parts
from probing.probes._rows import moments, rounded, standardise, standardise_rounded
from probing.probes._softmax import Stop, solve
from probing.probes._softmax_low_rank import solve_low_rank
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
    ones = _softmax_curvature.with_ones(rows)
    exact = (ones * weights.unsqueeze(1)).T @ ones / 50_000
    sampled = _softmax_curvature.weighted_gram(rows, weights, 8000, source)
    torch.testing.assert_close(sampled, exact, atol=0.02, rtol=0.06)


def test_the_caller_thread_count_and_global_generator_are_left_alone():
    X, y = planted(300, 5, 3)
    before = torch.get_rng_state(), torch.get_num_threads()
    LinearProbe().fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.get_num_threads() == before[1]


LOW = pytest.mark.skipif(not _rows.low_precision_helps(), reason="no bfloat16 products here")


@pytest.mark.parametrize("seed", range(8))
def test_random_problems_end_within_a_ten_thousandth_of_scikit_learns_optimum(seed):
    rng = np.random.default_rng(seed)
    d, k = int(np.exp(rng.uniform(np.log(4), np.log(120)))), int(rng.integers(2, 12))
    n, l2 = int(rng.integers(20 * k, 1500)), float(10 ** rng.uniform(-1, 2))
    X, y = planted(n, d, k, seed=seed, noise=float(rng.uniform(0.2, 3)))
    y = np.where(rng.random(n) < 0.5, y, 0)  # skewed
    y[:k] = np.arange(k)
    X[:, 0] = 3.0  # constant
    X[:, 1] = 2 * X[:, 2] - 1  # collinear
    probe = LinearProbe(l2=l2).fit(X, y)
    Z = standardise(X, *moments(X)).astype(np.float64)
    oracle = LogisticRegression(C=1 / l2, tol=1e-7, max_iter=20_000).fit(Z, y)
    W, b = oracle.coef_.T, oracle.intercept_
    if k == 2:
        W, b = np.hstack([-W / 2, W / 2]), np.array([-b[0] / 2, b[0] / 2])
    best = objective(Z, y, W, b, l2, k == 2)
    assert probe.converged_
    assert objective(Z, y, probe.coef_, probe.intercept_, l2, k == 2) <= best * (1 + 1e-4) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("d, k, l2", [(800, 50, 1.0), (800, 2, 0.01), (200, 20, 100.0)])
def test_wide_problems_of_many_classes_end_there_too(d, k, l2):
    X, y = planted(6000, d, k)
    probe = LinearProbe(l2=l2).fit(X, y)
    tight = LinearProbe(l2=l2, tolerance=1e-7, max_iterations=2000).fit(X.astype(np.float64), y)
    assert probe.converged_ and probe.objective_ <= tight.objective_ * (1 + 1e-4)


@pytest.mark.parametrize("n, d, k, l2", [(3000, 800, 2, 0.1), (1500, 600, 3, 0.1), (1200, 900, 2, 1.0)])
def test_states_whose_variances_are_alike_end_at_the_optimum_too(n, d, k, l2):
    """No few directions stand for the others there."""
    X, y = planted(n, d, k)
    X = X + np.random.default_rng(d).normal(0, 0.3, X.shape).astype(X.dtype)
    probe = LinearProbe(l2=l2).fit(X, y)
    tight = LinearProbe(l2=l2, tolerance=1e-7, max_iterations=2000).fit(X.astype(np.float64), y)
    assert probe.converged_ and probe.objective_ <= tight.objective_ * (1 + 1e-4)
    assert probe.n_iter_ <= 100


@LOW
def test_low_precision_on_the_way_does_not_show_in_the_end(monkeypatch):
    X, y = planted(20_000, 128, 6)
    early = LinearProbe().fit(X, y)
    monkeypatch.setattr(_rows, "low_precision_helps", lambda: False)
    full = LinearProbe(tolerance=1e-6).fit(X, y)
    assert early.converged_ and early.objective_ <= full.objective_ * (1 + 1e-4)
    assert early.score(X, y) == pytest.approx(full.score(X, y), abs=0.002)


@pytest.mark.skipif(not (_rows.low_precision_helps() and can_pack(torch.bfloat16)), reason="nothing is packed here")
@pytest.mark.parametrize("n", [8192, 9001, 12_288])
def test_packed_rows_multiply_as_rows_do(n):
    source = torch.Generator().manual_seed(0)
    rows = _rows.HeldRows(torch.randn(n, 40, generator=source))
    weights, intercept = torch.randn(7, 40, generator=source), torch.randn(7, 1, generator=source)
    residual = torch.randn(7, n, generator=source)
    logits, gradient, seen = torch.empty(7, n), torch.ones(7, 40), 0
    for start, operand in rows.operands(3000, low=True):
        assert isinstance(operand, _rows.PackedOperand) and start == seen
        seen += len(operand)
        operand.logits(weights, logits[:, start:seen], intercept)
        operand.add_gradient(residual[:, start:seen], gradient)
    assert seen == n
    x = next(rows.blocks(n))[1].double()
    torch.testing.assert_close(logits.double(), weights.double() @ x.T + intercept, atol=0.2, rtol=0.02)
    torch.testing.assert_close(gradient.double(), 1 + residual.double() @ x, atol=3.0, rtol=0.02)


@pytest.mark.parametrize("l2", [1.0, 100.0])
def test_fewer_rows_than_features_end_where_all_directions_would(l2):
    X, y = planted(80, 300, 3)
    Z = torch.from_numpy(standardise(X, *moments(X))).double()
    codes, penalty, stop = torch.from_numpy(y), l2 / 80, Stop(1e-9, 500)
    inside = solve(_rows.HeldRows(Z), [codes], [3], [penalty], stop)[0]
    weights = inside.weights.requires_grad_()
    intercept = inside.intercept.requires_grad_()
    objective = (
        torch.nn.functional.cross_entropy(Z @ weights + intercept, codes) + 0.5 * penalty * weights.square().sum()
    )
    objective.backward()  # at the optimum no direction, inside or outside of what the rows span, lowers it
    assert float(weights.grad.abs().max()) < 1e-6 and float(intercept.grad.abs().max()) < 1e-6
    assert inside.objective == pytest.approx(objective.item(), rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_standardising_in_float32_costs_no_digits(offset):
    X = (np.random.default_rng(0).normal(size=(5000, 8)) + offset).astype(np.float32)
    mean, scale = (rounded(part) for part in moments(X))
    fast, exact = standardise_rounded(X, mean, scale), standardise(X, mean, scale)
    np.testing.assert_allclose(fast, exact, atol=1e-6)


def test_prefixes_are_fits_of_their_rows_and_a_class_may_appear_later():
    X, y = planted(1200, 8, 4)
    y = np.where((np.arange(len(y)) < 300) & (y == 2), 0, y)
    recipe = LinearProbe(tolerance=1e-6)
    ends = [100, 300, 1200]
    for end, row in zip(ends, recipe.fit_prefixes(X, [y, y % 2], ends, [0, 1]), strict=True):
        for labels, fits in zip((y, y % 2), row, strict=True):
            alone = LinearProbe(tolerance=1e-6).fit(X[:end], labels[:end])
            np.testing.assert_array_equal(fits[1].classes_, alone.classes_)
            assert fits[0].objective_ == pytest.approx(alone.objective_, rel=2e-5)


@pytest.mark.slow
def test_a_limited_rank_is_kept_costs_objective_and_repeats():
    X, y = planted(2000, 20, 6)
    fits = {rank: LinearProbe(rank=rank).fit(X, y) for rank in (1, 2, 5)}
    objectives = [-np.log(fit.predict_proba(X)[np.arange(len(y)), y]).mean() for fit in fits.values()]
    assert objectives[0] > objectives[1] > objectives[2]
    assert all(np.linalg.matrix_rank(fit.coef_, tol=1e-6) <= rank for rank, fit in fits.items())
    np.testing.assert_array_equal(fits[2].coef_, LinearProbe(rank=2).fit(X, y).coef_)
    many = LinearProbe(rank=2).fit_many(X, [y, y % 2], [0])
    np.testing.assert_allclose(many[0][0].predict_proba(X), fits[2].predict_proba(X), atol=0.02)
    with pytest.raises(BadParameter, match="rank"):
        LinearProbe(rank=0).fit(X, y)


def best_by_l_bfgs(Z, y, k, rank, lam):
    """The lowest objective of W = A·B that scipy's L-BFGS finds from two random starts."""
    Z, y = torch.from_numpy(Z).double(), torch.from_numpy(y)
    sizes = [k * rank, rank * Z.shape[1], k]

    def value_and_slope(v):
        v = torch.from_numpy(v).requires_grad_()
        A, B, b = torch.split(v, sizes)
        logits = Z @ B.view(rank, -1).T @ A.view(k, rank).T + b
        value = torch.nn.functional.cross_entropy(logits, y) + 0.5 * lam * (A.square().sum() + B.square().sum())
        value.backward()
        return value.item(), v.grad.numpy()

    starts = (0.2 * np.random.default_rng(seed).normal(size=sum(sizes)) for seed in range(2))
    return min(minimize(value_and_slope, v, jac=True, method="L-BFGS-B", options={"maxiter": 300}).fun for v in starts)


@pytest.mark.slow
@pytest.mark.parametrize("rank, share", [(1, 1.1), (4, 1.02)])
def test_a_limited_rank_ends_as_low_as_l_bfgs_from_random_starts(rank, share):
    """Nearly separable classes, whose full weights are large: cut to a rank they alone are worse than no weights."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 7, 1500)
    X = (2 * rng.normal(size=(7, 4))[y] @ rng.normal(size=(4, 32)) * 0.5 + rng.normal(size=(1500, 32))).astype("f")
    probe = LinearProbe(rank=rank).fit(X, y)
    Z = standardise(X, *moments(X))
    assert probe.objective_ <= share * best_by_l_bfgs(Z, y, 7, rank, 1 / len(y))


@pytest.mark.slow
def test_label_sets_under_a_rank_end_together_where_each_ends_alone():
    X, y = planted(2000, 20, 6)
    rows = _rows.HeldRows(torch.from_numpy(standardise(X, *moments(X))).double())
    codes, classes, weight = [torch.from_numpy(one) for one in (y, y % 2, (y + 1) % 4)], [6, 2, 4], 1 / rows.n
    full = solve(rows, codes, classes, [weight] * 3, Stop(1e-3, 200))
    together = solve_low_rank(rows, codes, full, [weight] * 3, 3)
    for one, start, found in zip(codes, full, together, strict=True):
        (alone,) = solve_low_rank(rows, [one], [start], [weight], 3)
        assert (
            found.objective == pytest.approx(alone.objective, rel=1e-6) and found.weights.shape == start.weights.shape
        )
        np.testing.assert_allclose(found.weights, alone.weights, atol=1e-4)
        np.testing.assert_allclose(found.intercept, alone.intercept, atol=1e-4)


def test_a_rank_that_limits_nothing_reaches_the_optimum_under_the_sum_of_singular_values():
    """½(‖A‖² + ‖B‖²) is at least that sum of W = A·B; the optimum under it is convex: here by proximal gradients."""
    X, y = planted(1500, 10, 4)
    probe = LinearProbe(rank=8, l2=30.0).fit(X, y)
    Z, lam = standardise(X, *moments(X)).astype(np.float64), 30 / 1500
    step = 2 / (np.linalg.eigvalsh(Z.T @ Z / len(Z))[-1] + 1)
    W, b = np.zeros((10, 4)), np.zeros(4)
    for _ in range(1000):
        residual = softmax(Z @ W + b, axis=1) - np.eye(4)[y]
        U, S, Vh = np.linalg.svd(W - step * Z.T @ residual / len(Z), full_matrices=False)
        W, b = (U * np.maximum(S - step * lam, 0)) @ Vh, b - step * residual.mean(0)
    best = objective(Z, y, W, b, 0.0, False) + lam * np.linalg.svd(W, compute_uv=False).sum()
    assert best * (1 - 1e-6) <= probe.objective_ <= best * (1 + 1e-3)


def flat_tail(n, d, sets, classes, seed):
    """Rows of few strong directions and noise, and label sets, the first linear, the others random."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, 8))
    X = factors * np.linspace(8, 0.5, 8) @ rng.normal(size=(8, d)) / d**0.5 + 0.3 * rng.normal(size=(n, d))
    X[:, rng.integers(d)] *= 60
    linear = np.argmax(factors @ rng.normal(size=(8, classes)) + rng.gumbel(size=(n, classes)), axis=1)
    return X.astype(np.float32), [linear, *(rng.integers(0, classes, n) for _ in range(sets - 1))]


@pytest.mark.parametrize("seed", range(6))
def test_no_shape_ends_above_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    n, d = (int(np.exp(rng.uniform(np.log(60), np.log(900)))) for _ in range(2))
    classes, sets = int(rng.choice([2, 5])), int(rng.integers(1, 4))
    X, targets = flat_tail(n, d, sets, classes, seed)
    Z = standardise(X, *moments(X)).astype(np.float64)
    for (probe,), y in zip(LinearProbe().fit_many(X, targets, [0]), targets, strict=True):
        theirs = LogisticRegression(max_iter=1000).fit(Z, y)
        W, b = theirs.coef_.T, theirs.intercept_
        if classes == 2:
            W, b = np.hstack([-W / 2, W / 2]), np.array([-b[0] / 2, b[0] / 2])
        least = objective(Z, y, W, b, 1.0, classes == 2)
        assert objective(Z, y, probe.coef_, probe.intercept_, 1.0, classes == 2) <= least * (1 + 1e-4)
        assert probe.converged_


PATHS = {
    "dense from the start": {"_HOPED_STEPS": np.inf},
    "dense after a while": {"_HOPED_STEPS": 0, "_FEARED_STEPS": np.inf, "_PATIENCE": 4},
    "low rank to the end": {"_HOPED_STEPS": 0, "_FEARED_STEPS": 0},
    "a lower rank than there are directions": {"_HOPED_STEPS": 0, "_FEARED_STEPS": 0, "_RANK": 4},
}


@pytest.mark.parametrize("n, d, classes", [(150, 400, 2), (700, 200, 3)])
def test_every_way_of_the_cost_model_ends_at_one_optimum_and_repeats(monkeypatch, n, d, classes):
    X, targets = flat_tail(n, d, 2, classes, 1)
    ends = []
    for settings in PATHS.values():
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setattr(_softmax_curvature, name, value)
            (first,), (second,) = LinearProbe(tolerance=1e-6).fit_many(X, targets, [0])
            again = LinearProbe(tolerance=1e-6).fit_many(X, targets, [0])[0][0]
        np.testing.assert_array_equal(first.coef_, again.coef_)
        assert first.converged_ and second.converged_
        ends.append([first.objective_, second.objective_])
    np.testing.assert_allclose(ends, np.broadcast_to(np.min(ends, axis=0), (len(PATHS), 2)), rtol=2e-5)
