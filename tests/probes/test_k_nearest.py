"""Laws of the nearest-neighbour probe: nearest rows, smoothed counts, one search for all label sets."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from probing.errors import BadParameter
from probing.probes._rows import moments, standardise
from probing.probes.k_nearest import KNearestProbe, KNearestRegressorProbe, Neighbours


def states(n, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, 6)) * [1, 9, 1, 1, 1, 1] + 3).astype(np.float32)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_nearest_rows_are_those_of_the_smallest_distances(metric):
    rows, queries = states(200), states(50, seed=1)
    a, b = rows.astype(float), queries.astype(float)
    if metric == "cosine":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    distances = np.linalg.norm(b[:, None] - a, axis=2)
    np.testing.assert_array_equal(Neighbours(rows, metric).nearest(queries, 5), distances.argsort(axis=1)[:, :5])


def test_probabilities_are_smoothed_counts_and_never_zero():
    X = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    probe = KNearestProbe(k=3).fit(X, ["a", "a", "b", "c", "c", "c"])
    np.testing.assert_allclose(probe.predict_proba([[0.05]]), [[3 / 6, 2 / 6, 1 / 6]])
    np.testing.assert_allclose(KNearestProbe(k=99).fit(X, [0, 0, 0, 0, 0, 1]).predict_proba([[0.0]]), [[6 / 8, 2 / 8]])


def test_the_regressor_averages_its_neighbours():
    X = np.array([[0.0], [1.0], [10.0], [11.0]])
    assert KNearestRegressorProbe(k=2).fit(X, [1.0, 3.0, 10.0, 20.0]).predict([[0.4], [10.4]]).tolist() == [2.0, 15.0]


@pytest.mark.parametrize("kind", [KNearestProbe, KNearestRegressorProbe])
def test_label_sets_share_one_search_and_agree_with_fits_alone(kind, monkeypatch):
    X, queries = states(300), states(40, seed=1)
    targets = [X[:, 0] > 3, X[:, 2] > 2, np.random.default_rng(0).integers(2, size=300)]
    targets = [y.astype(float if "real" in kind.kinds else int) for y in targets]
    fits = kind(k=7).fit_many(X, targets, [0, 1])
    searches = []
    search = NearestNeighbors.kneighbors
    monkeypatch.setattr(NearestNeighbors, "kneighbors", lambda *a, **kw: searches.append(1) or search(*a, **kw))
    found = [[fit.predict(queries) for fit in row] for row in fits]
    assert len(searches) == 1
    for row, y in zip(found, targets, strict=True):
        alone = kind(k=7).fit(X, y).predict(queries)
        np.testing.assert_array_equal(row[0], alone)
        np.testing.assert_array_equal(row[1], alone)


def test_other_states_are_searched_anew():
    X = states(300)
    probe = KNearestProbe(k=1).fit(X, np.arange(300) % 7)
    for queries in (X[:30], X[30:60], X[:30]):
        np.testing.assert_array_equal(
            probe.predict(queries), np.arange(300)[(X[:, None] == queries[None]).all(2).argmax(0)] % 7
        )


def test_a_coordinate_of_large_scale_does_not_rule_the_distance():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=2000)
    X = np.stack([y + 0.2 * rng.normal(size=2000), 1e4 * rng.normal(size=2000)], axis=1)
    assert KNearestProbe().fit(X[:1000], y[:1000]).score(X[1000:], y[1000:]) > 0.95
    raw = standardise(X, *moments(X)) * [1, 1e4]
    plain = NearestNeighbors(n_neighbors=10).fit(raw[:1000]).kneighbors(raw[1000:], return_distance=False)
    assert ((y[:1000][plain].mean(1) > 0.5) == y[1000:]).mean() < 0.7


@pytest.mark.parametrize("options", [{"k": 0}, {"metric": "manhattan"}])
def test_bad_options_are_refused(options):
    with pytest.raises(BadParameter):
        KNearestProbe(**options).fit(states(20), np.arange(20) % 2)
