"""Laws of the difference of class means, plain and whitened."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import qr
from scipy.stats import norm
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from probing.errors import BadParameter, DegenerateDesign
from probing.probes.linear import LinearProbe
from probing.probes.mass_mean import MassMeanProbe
from tests.probes.test_probes import blobs

BOTH = pytest.mark.parametrize("whitened", [False, True], ids=["plain", "whitened"])


def ellipse(n, seed=0, delta=2.0):
    """Two classes apart in coordinate 0 alone, by `delta` of its deviation; noise of both kinds is correlated."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    shared = rng.normal(size=n)
    own = rng.normal(size=n)
    return np.stack([delta * y + own + 3 * shared, 3 * shared + 0.1 * rng.normal(size=n)], axis=1), y


def test_two_classes_give_the_difference_of_their_means():
    X, y = blobs(k=2)
    direction = MassMeanProbe().fit(X, y).direction_
    theta = X[y == 1].mean(0, dtype=np.float64) - X[y == 0].mean(0, dtype=np.float64)
    np.testing.assert_allclose(direction[:, 1] - direction[:, 0], theta, rtol=1e-5, atol=1e-6)


def test_whitened_without_shrinkage_is_linear_discriminant_analysis():
    X, y = blobs(n=1000, spread=2.0)
    X = X * [1, 10, 0.1, 1, 1, 1] + 100
    ours = MassMeanProbe(whitened=True, shrinkage=0.0).fit(X, y)
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
    theirs = oracle.coef_.T - oracle.coef_.T.mean(1, keepdims=True)
    np.testing.assert_allclose(ours.direction_ - ours.direction_.mean(1, keepdims=True), theirs, rtol=1e-3, atol=1e-4)
    assert abs(ours.score(X, y) - oracle.score(X, y)) < 0.01


def test_whitening_finds_what_correlated_noise_hides_from_plain_means():
    (X, y), (X_test, y_test) = ellipse(4000), ellipse(8000, seed=1)
    plain = MassMeanProbe().fit(X, y).score(X_test, y_test)
    whitened = MassMeanProbe(whitened=True).fit(X, y).score(X_test, y_test)
    assert plain < 0.7
    assert whitened == pytest.approx(norm.cdf(1.0), abs=0.015)


def test_plain_scores_do_not_change_when_states_are_rotated_nor_whitened_ones_when_they_are_scaled():
    X, y = blobs(spread=2.0)
    X = X.astype(np.float64)
    turn = qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    plain, whitened = MassMeanProbe(), MassMeanProbe(whitened=True)
    before = plain.fit(X, y).predict_log_proba(X)
    np.testing.assert_allclose(plain.fit(X @ turn, y).predict_log_proba(X @ turn), before, atol=1e-4)
    before = whitened.fit(X, y).predict_log_proba(X)
    scaled = X * np.logspace(-3, 3, 6)
    np.testing.assert_allclose(whitened.fit(scaled, y).predict_log_proba(scaled), before, atol=1e-4)


@BOTH
def test_probabilities_are_calibrated_and_the_temperature_is_that_of_the_noise(whitened):
    (X, y), (X_test, y_test) = (
        (2.0 * y[:, None] + np.random.default_rng(s).normal(size=(6000, 1)), y)
        for s, y in ((s, np.random.default_rng(s + 9).integers(2, size=6000)) for s in (0, 1))
    )
    ours = MassMeanProbe(whitened=whitened).fit(X, y)
    assert ours.converged_
    loss = -ours.predict_log_proba(X_test)[np.arange(6000), y_test].mean()
    best = -LinearProbe().fit(X, y).predict_log_proba(X_test)[np.arange(6000), y_test].mean()
    assert loss == pytest.approx(best, abs=1e-3)


@BOTH
def test_one_pass_over_many_label_sets_is_as_good_as_one_by_one(whitened):
    X, y = blobs(spread=2.0)
    fits = MassMeanProbe(whitened=whitened).fit_many(X, [y, y % 2], [3, 4])
    for row, labels in zip(fits, [y, y % 2], strict=True):
        alone = MassMeanProbe(whitened=whitened).fit(X, labels).predict_log_proba(X)
        for fit in row:
            np.testing.assert_array_equal(fit.predict_log_proba(X), alone)


@BOTH
def test_constant_coordinates_count_for_nothing(whitened):
    X, y = blobs()
    constant = np.full((len(X), 1), 1e6, np.float32)
    shrinkage = 0.0 if whitened else None
    plain = MassMeanProbe(whitened, shrinkage).fit(X, y)
    padded = MassMeanProbe(whitened, shrinkage).fit(np.hstack([X, constant]), y)
    assert not padded.direction_[-1].any()
    np.testing.assert_allclose(padded.predict_proba(np.hstack([X, constant + 99])), plain.predict_proba(X), atol=1e-6)


def test_the_estimated_shrinkage_is_that_of_scikit_learn():
    rng = np.random.default_rng(5)
    y = rng.integers(3, size=150)
    X = rng.normal(size=(150, 20)) * np.linspace(1, 3, 20) + y[:, None]
    probe = MassMeanProbe(whitened=True).fit(X, y)
    rows = (X - X.mean(0)) / X.std(0)
    within = rows - np.stack([rows[y == code].mean(0) for code in range(3)])[y]
    assert probe.shrinkage_ == pytest.approx(ledoit_wolf_shrinkage(within, assume_centered=True), rel=1e-4)


def test_shrinkage_is_estimated_falls_with_rows_and_saves_more_columns_than_rows():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=4000)
    X = rng.normal(size=(4000, 100)) + rng.normal(size=(4000, 5)) @ rng.normal(size=(5, 100))
    X[:, :50] += 0.6 * y[:, None]
    few, many = (MassMeanProbe(whitened=True).fit(X[:n], y[:n]) for n in (60, 2000))
    assert 0 < many.shrinkage_ < few.shrinkage_ / 3 < 1
    bare = MassMeanProbe(whitened=True, shrinkage=0.0).fit(X[:60], y[:60])
    assert few.score(X[2000:], y[2000:]) > bare.score(X[2000:], y[2000:]) + 0.05


def test_separated_classes_give_finite_probabilities():
    X, y = blobs(spread=1e-3)
    probe = MassMeanProbe().fit(X, y)
    assert probe.score(X, y) == 1.0 and np.isfinite(probe.predict_log_proba(X)).all() and probe.converged_


def test_bad_options_and_one_class_are_refused():
    X, y = blobs()
    with pytest.raises(BadParameter, match="shrinkage"):
        MassMeanProbe(whitened=True, shrinkage=1.5).fit(X, y)
    with pytest.raises(DegenerateDesign, match="one class"):
        MassMeanProbe().fit(X, np.zeros(len(y)))


def skewed(n=1500, seed=0):
    """Four classes of unlike size and scale, off the origin: fitted intercepts leave the midpoints far behind."""
    rng = np.random.default_rng(seed)
    y = rng.choice(4, n, p=[0.7, 0.2, 0.07, 0.03])
    X = rng.normal(size=(4, 12))[y] + rng.normal(size=(n, 12)) * [1, 1, 3, 1, 1, 1, 1, 0.2, 1, 1, 1, 1] + 7
    return X.astype(np.float32), y


def test_midpoint_intercepts_give_the_class_of_the_nearest_mean():
    (X, y), (X_test, _) = skewed(), skewed(seed=1)
    theirs = NearestCentroid().fit(X, y).predict(X_test)
    ours = MassMeanProbe(intercept="midpoint").fit(X, y)
    assert (ours.predict(X_test) == theirs).mean() > 0.999
    assert (MassMeanProbe().fit(X, y).predict(X_test) == theirs).mean() < 0.9
    assert ours.temperature_ > 0 and ours.converged_


def test_whitened_midpoint_intercepts_give_the_mean_that_is_nearest_by_mahalanobis_distance():
    (X, y), (X_test, _) = skewed(), skewed(seed=1)
    X, X_test = X.astype(np.float64), X_test.astype(np.float64)
    means = np.stack([X[y == k].mean(0) for k in range(4)])
    within = X - means[y]
    inverse = np.linalg.inv(within.T @ within / len(X))
    away = X_test[:, None] - means
    nearest = np.einsum("nkd,de,nke->nk", away, inverse, away).argmin(1)
    ours = MassMeanProbe(whitened=True, shrinkage=0.0, intercept="midpoint").fit(X, y).predict(X_test)
    assert (ours == nearest).mean() > 0.999


def test_an_unknown_intercept_is_refused_with_the_nearest():
    X, y = skewed(n=100)
    with pytest.raises(BadParameter, match="did you mean 'midpoint'"):
        MassMeanProbe(intercept="midpont").fit(X, y)
