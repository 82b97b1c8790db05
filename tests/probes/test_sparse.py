"""Sparse probes name the coordinates that were planted, and say how few suffice."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Lasso, LogisticRegression, OrthogonalMatchingPursuit

from probing.errors import BadParameter, DegenerateDesign
from probing.probes._estimator import load_probe
from probing.probes._rows import StreamedMoments, moments, standardise
from probing.probes._sparse_objectives import Fit, LogLoss, SquaredLoss, lasso_order
from probing.probes.linear import LinearProbe
from probing.probes.sparse import SparseProbe, SparseRegressorProbe

METHODS = pytest.mark.parametrize("method", ["forward", "l1"])
PLANTED = [17, 141, 90]


def planted(n=1500, width=200, classes=4, seed=0):
    """Labels from coordinates 17, 141 and 90 of `width`, in this order of strength, of very different scale."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, width))
    strength = np.random.default_rng(5).normal(size=(3, classes))
    strength *= (
        np.array([[6.0], [4.0], [2.5]]) / np.linalg.norm(strength - strength.mean(1, keepdims=True), axis=1)[:, None]
    )
    y = (X[:, PLANTED] @ strength + rng.gumbel(size=(n, classes))).argmax(1)
    return (X * np.logspace(-3, 3, width) + 5).astype(np.float32), y


@METHODS
@pytest.mark.parametrize("classes", [2, 4])
def test_exactly_the_planted_coordinates_are_named_first(method, classes):
    X, y = planted(classes=classes)
    probe = SparseProbe(k=6, method=method).fit(X, y)
    assert probe.coordinates_[:3].tolist() == PLANTED
    assert len(probe.coordinates_) <= 6 and probe.converged_


@METHODS
def test_the_path_says_that_three_suffice(method):
    (X, y), dev = planted(n=3000), planted(n=3000, seed=1)
    path = SparseProbe(k=8, method=method).fit(X, y, dev=dev).path_
    dev_loss = path[:, SparseProbe.PATH_COLUMNS.index("dev log loss")]
    assert (np.diff(dev_loss[:3]) < -0.1).all() and np.ptp(dev_loss[2:]) < 0.02
    assert (np.diff(path[:, 0]) < 1e-4).all()
    assert np.isnan(SparseProbe(k=2, method=method).fit(X, y).path_[:, 2:]).all()


@METHODS
def test_the_last_fit_is_the_linear_probe_on_the_chosen_coordinates(method):
    X, y = planted()
    probe = SparseProbe(k=5, method=method).fit(X, y)
    chosen = X[:, probe.coordinates_]
    ours, oracle = probe.predict_log_proba(X), LinearProbe(tolerance=1e-7).fit(chosen, y).predict_log_proba(chosen)
    np.testing.assert_allclose(ours, oracle, atol=0.02)
    assert -ours[np.arange(len(y)), y].mean() / np.log(2) == pytest.approx(probe.path_[-1, 0], rel=1e-3)


@METHODS
def test_only_the_chosen_coordinates_are_read(method):
    X, y = planted()
    probe = SparseProbe(k=3, method=method).fit(X, y)
    other = np.full_like(X, 1e9)
    other[:, probe.coordinates_] = X[:, probe.coordinates_]
    np.testing.assert_array_equal(probe.predict_log_proba(other), probe.predict_log_proba(X))


@METHODS
@pytest.mark.parametrize("k", [1, 2, 4])
def test_at_most_k_coordinates_are_read_even_where_more_help(method, k):
    X, y = planted()
    assert len(SparseProbe(k=k, method=method).fit(X, y).coordinates_) == k


@METHODS
def test_a_constant_coordinate_and_a_copy_are_never_needed(method):
    X, y = planted()
    X[:, 0], X[:, 1] = 1e5, X[:, 17]
    found = SparseProbe(k=4, method=method).fit(X, y).coordinates_.tolist()
    assert 0 not in found
    assert {1, 17} & set(found) and {90, 141} <= set(found)
    assert method == "l1" or not {1, 17} <= set(found)  # forward names one of two copies; l1 may share between them


@METHODS
def test_a_decoy_that_sums_the_causes_is_named_first(method):
    """What the class warns of: a set that suffices need not be the set of causes."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 20))
    y = (X[:, 3] + X[:, 4] + 0.3 * rng.normal(size=3000) > 0).astype(int)
    X[:, 9] = X[:, 3] + X[:, 4] + 0.5 * rng.normal(size=3000)
    found = SparseProbe(k=3, method=method).fit(X, y).coordinates_.tolist()
    assert found[0] == 9 and set(found) == {3, 4, 9}


@METHODS
def test_many_label_sets_at_once_are_as_one_by_one(method):
    X, y = planted(n=600, width=40 + 110)
    X_dev, y_dev = planted(n=200, width=150, seed=3)
    recipe = SparseProbe(k=4, method=method)
    fits = recipe.fit_many(X, [y, y % 2], [0, 1], dev=(X_dev, [y_dev, y_dev % 2]))
    for row, (labels, held) in zip(fits, [(y, y_dev), (y % 2, y_dev % 2)], strict=True):
        alone = recipe.with_seed(0).fit(X, labels, dev=(X_dev, held))
        for fit in row:
            assert fit.coordinates_.tolist() == alone.coordinates_.tolist()
            np.testing.assert_array_equal(fit.path_, alone.path_)


def test_the_path_is_saved_with_the_probe(tmp_path):
    X, y = planted(n=300)
    probe = SparseProbe(k=3).fit(X, y)
    probe.save(tmp_path / "p")
    loaded = load_probe(tmp_path / "p")
    np.testing.assert_array_equal(loaded.path_, probe.path_)
    assert loaded.coordinates_.tolist() == probe.coordinates_.tolist()


def test_forward_regression_is_orthogonal_least_squares_and_names_what_matching_pursuit_does():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(800, 60))
    y = 5 * X[:, 7] - 3 * X[:, 40] + 2 * X[:, 2] + rng.normal(size=800)
    probe = SparseRegressorProbe(k=3, l2=0.0).fit(X, y, dev=(X, y))
    assert probe.coordinates_.tolist() == [7, 40, 2]
    oracle = OrthogonalMatchingPursuit(n_nonzero_coefs=3).fit(X, y)
    np.testing.assert_allclose(probe.predict(X), oracle.predict(X), atol=1e-4)
    np.testing.assert_allclose(probe.path_[-1], oracle.score(X, y), atol=1e-5)


def test_lasso_regression_enters_coordinates_as_scikit_learns_lasso_does():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(500, 30)) @ (np.eye(30) + 0.3 * rng.normal(size=(30, 30)))
    y = X[:, :5] @ [3, -2, 1, 0.5, 0.2] + rng.normal(size=500)
    probe = SparseRegressorProbe(k=4, method="l1").fit(X, y)
    rows = standardise(X, *moments(X))
    first = np.abs(rows.T @ (y - y.mean())).max() / 500
    entered = []
    for alpha in first * 0.9 ** np.arange(1, 40):
        active = np.flatnonzero(Lasso(alpha=alpha, tol=1e-6).fit(rows.astype(float), y).coef_).tolist()
        entered += [j for j in active if j not in entered]
        if len(active) >= 4:
            break
    assert set(probe.coordinates_) <= set(entered) and probe.coordinates_[0] == entered[0]


def test_the_lasso_solutions_meet_their_optimality_conditions():
    """At α a coordinate that is out has a slope of norm at most α, one that is in has exactly α (Yuan & Lin 2006)."""
    import torch

    from probing.probes._sparse_objectives import _minimised, start_of

    X, y = planted(n=800, width=150)
    rows = standardise(X, *moments(X))
    gram = StreamedMoments.of(rows).correlations
    objective = LogLoss(torch.from_numpy(rows).double(), torch.from_numpy(y), 4, gram, 0.0)
    start = start_of(objective)
    everywhere = np.ones(150, bool)
    W, b = np.zeros((150, 4)), start.intercept
    for _ in range(20):
        W, b = _minimised(objective, W, b, 0.05, everywhere)
    active = np.flatnonzero(W.any(1)).tolist()
    norms = np.linalg.norm(objective.slope(active, Fit(W[active], b)).weights, axis=1)
    assert 3 <= len(active) < 100
    np.testing.assert_allclose(norms[active], 0.05, rtol=0.02)
    assert np.delete(norms, active).max() <= 0.05 * 1.01


def test_refits_on_few_columns_reach_the_optimum_that_scikit_learn_finds():
    import torch

    X, y = planted(n=800)
    rows = standardise(X, *moments(X))
    gram = StreamedMoments.of(rows).correlations
    columns = [17, 141, 90, 3]
    objective = LogLoss(torch.from_numpy(rows).double(), torch.from_numpy(y), 4, gram, 1 / 800)
    fit = objective.refit(columns, Fit(np.zeros((4, 4)), np.zeros(4)))
    oracle = LogisticRegression(tol=1e-8, max_iter=1000).fit(rows[:, columns], y)
    loss = -oracle.predict_log_proba(rows[:, columns])[np.arange(800), y].mean()
    assert objective.slope(columns, fit).loss == pytest.approx(loss, rel=1e-3)


def test_no_signal_gives_no_error_and_bad_options_are_refused():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 5)), rng.integers(2, size=50)
    for options in ({"k": 0}, {"method": "best"}, {"l2": -1.0}):
        for kind in (SparseProbe, SparseRegressorProbe):
            with pytest.raises(BadParameter):
                kind(**options).fit(X, y)
    with pytest.raises(DegenerateDesign, match="one class"):
        SparseProbe().fit(X, np.zeros(50))
    constant = SparseProbe().fit(np.ones((50, 2)), y)
    assert len(constant.coordinates_) == 0
    np.testing.assert_allclose(constant.predict_proba(np.ones((1, 2)))[0, 1], y.mean(), atol=1e-3)
    flat = SquaredLoss(np.eye(2), np.zeros((2, 1)), 0.0, 1.0)
    assert lasso_order(flat, 2) == []
