"""Laws of the readers of states that are fitted from sums: sums add up, and offsets of the states cost nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression

from probing.use.discriminant import Discriminant, Mahalanobis, Moments

OFFSET = 1e3


def made(n_classes, n=600, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.integers(0, n_classes, n) if n_classes else rng.normal(size=n)
    h = rng.normal(size=(n, 5)) @ rng.normal(size=(5, 5)) + OFFSET
    return h + np.outer(z, rng.normal(size=5)), z


@pytest.mark.parametrize("n_classes", [0, 2, 3])
def test_moments_of_parts_add_up_to_those_of_the_whole(n_classes):
    h, z = made(n_classes)
    origin = h[:9].mean(0)
    parts = [Moments.of(h[rows], z[rows], n_classes, origin) for rows in (slice(200), slice(200, None))]
    found, whole = Discriminant(parts[0] + parts[1]), Discriminant(Moments.of(h, z, n_classes))
    np.testing.assert_allclose(found.predict(h), whole.predict(h), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_classes_are_told_as_by_discriminant_analysis(n_classes):
    h, z = made(n_classes)
    said = Discriminant(Moments.of(h, z, n_classes)).predict(h)
    wanted = LinearDiscriminantAnalysis(solver="lsqr").fit(h - OFFSET, z).predict_proba(h - OFFSET)
    np.testing.assert_allclose(said, wanted, atol=0.02)  # ours has a ridge
    np.testing.assert_allclose(said.sum(1), 1)


def test_a_class_without_rows_is_all_but_impossible():
    h, z = made(2)
    assert Discriminant(Moments.of(h, z, 3)).predict(h)[:, 2].max() < 1e-9


def test_real_values_are_told_as_by_regression():
    h, z = made(0)
    wanted = LinearRegression().fit(h - OFFSET, z).predict(h - OFFSET)
    np.testing.assert_allclose(Discriminant(Moments.of(h, z, 0)).predict(h)[:, 0], wanted, atol=0.05)


def test_distances_are_those_of_mahalanobis():
    h, z = made(2)
    inverse = np.linalg.inv(np.cov(h.T))
    wanted = [mahalanobis(row, h.mean(0), inverse) ** 2 for row in h[:20]]
    np.testing.assert_allclose(Mahalanobis(Moments.of(h, z, 2))(h[:20]), wanted, rtol=1e-3)
