"""The null of CKA is that of whole kernels under permutation of clusters, and unrelated states stay within it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probing.results.similarity import CKA, PROCRUSTES
from probing.similarities import nulls, similarity
from probing.similarities.linear import upper_bound
from probing.similarities.rows import SharedRows
from probing.similarities.sums import Source
from tests.similarities.test_similarity_laws import Floats, compared, dense_hsic, one, sentences, store_of


def clustered(random: Any, clusters: int, words: int, d: int, icc: float) -> Floats:
    """Gaussian states with an intra-class correlation within sentences."""
    shared = np.repeat(random.standard_normal((clusters, d)), words, axis=0)
    return np.asarray(np.sqrt(icc) * shared + np.sqrt(1 - icc) * random.standard_normal(shared.shape))


def two_kinds(random: Any, clusters: int = 20, words: int = 10) -> Floats:
    """16 large coordinates that differ between words, and 100 small ones that are the same within a sentence."""
    large = 2.0 * random.standard_normal((clusters * words, 16))
    return np.hstack([large, 0.9 * np.repeat(random.standard_normal((clusters, 100)), words, axis=0)])


def dense_cka(X: Floats, Y: Floats) -> float:
    K, L = X @ X.T, Y @ Y.T
    return dense_hsic(K, L) / float(np.sqrt(dense_hsic(K, K) * dense_hsic(L, L)))


def shared(clusters: int, words: int, seed: int = 0) -> SharedRows:
    groups = np.repeat(np.arange(clusters), words)
    every = np.arange(len(groups))
    return SharedRows(every, groups, every, groups, groups % 2, "sentence", 0, seed)


def sources(X: Floats, Y: Floats, rows: SharedRows) -> list[Source]:
    corpus = sentences(rows.clusters, len(X) // rows.clusters)
    found = [Source(n, store_of(corpus, {"resid.0": Z}, n), ["resid.0"], rows) for n, Z in (("a", X), ("b", Y))]
    for source in found:
        source.measure(lambda: None)
    return found


def null_of(X: Floats, Y: Floats, rows: SharedRows, count: int) -> Floats:
    pair = ("resid.0", "resid.0")
    return nulls.cka_nulls(*sources(X, Y, rows), [pair], rows, count)[pair]


@pytest.mark.parametrize("d", [6, 150])
def test_the_null_is_that_of_whole_kernels(d: int) -> None:
    random, rows = np.random.default_rng(0), shared(20, 5)
    X, Y = clustered(random, 20, 5, d, 0.6) + 9.0, 30.0 * clustered(random, 20, 5, d + 3, 0.3)
    K, L = X @ X.T, Y @ Y.T
    length = np.sqrt(dense_hsic(K, K) * dense_hsic(L, L))
    expected = [dense_hsic(K, L[np.ix_(move, move)]) / length for move in rows.permutations(9)]
    assert null_of(X, Y, rows, 9) == pytest.approx(np.array(expected), abs=1e-5)


def test_unrelated_states_of_two_kinds_of_coordinates_are_within_chance() -> None:
    """Kinds that the first principal components do not have in the same shares as the rest."""
    within, random = [], np.random.default_rng(3)
    for seed in range(16):
        X, Y = two_kinds(random), two_kinds(random)
        null = null_of(X, Y, shared(20, 10, seed), 39)
        value = dense_cka(X, Y)
        assert null.mean() == pytest.approx(value, abs=0.05) and value > 0.3
        within.append(value <= upper_bound(null))
    assert sum(within) >= 13  # 95 % of the time each
    pair = [store_of(sentences(20, 10), {"resid.0": Z}, name) for Z, name in ((X, "a"), (Y, "b"))]
    cka = one(similarity(*pair, permutations=39, progress=False), CKA)
    assert cka.score.value == pytest.approx(value, abs=1e-5)
    assert cka.null_mean == pytest.approx(null.mean(), abs=0.02) and (cka.null_bound or 0.0) > value - 0.02


@pytest.mark.parametrize(("d", "icc"), [(8, 0.0), (8, 0.6), (150, 0.0), (150, 0.6)])
def test_the_null_of_a_part_of_the_clusters_is_scaled_to_all(d: int, icc: float, monkeypatch: Any) -> None:
    """d is below and above the number of rows of the part (120 of 480)."""
    random, rows = np.random.default_rng(1), shared(120, 4)
    X, Y = clustered(random, 120, 4, d, icc), clustered(random, 120, 4, d, icc)
    exact = null_of(X, Y, rows, 200)
    monkeypatch.setattr(nulls, "NULL_ROWS", 120)
    parts = []
    for seed in range(6):
        some = shared(120, 4, seed)
        chosen, share = nulls.null_rows(some)
        assert (len(chosen), share) == (120, 0.25) and len(set(some.groups[chosen])) == 30
        parts.append(null_of(X, Y, some, 200))
    spread = float(exact.std())
    assert np.mean(parts) == pytest.approx(exact.mean(), abs=0.1 * abs(exact.mean()) + 0.3 * spread)
    assert np.mean([part.std() for part in parts]) == pytest.approx(spread, rel=0.3)


def test_of_few_large_clusters_evenly_spaced_rows_are_taken() -> None:
    chosen, share = nulls.null_rows(shared(8, 1000))
    assert share == 1.0 and np.bincount(chosen // 1000).tolist() == [188] * 8
    every, share = nulls.null_rows(shared(5, 300))
    assert share == 1.0 and len(every) == 1500


def test_of_r2_there_is_a_bound_but_no_mean_by_chance() -> None:
    random = np.random.default_rng(0)
    found = one(compared(*random.standard_normal((2, 240, 60))), PROCRUSTES)
    assert found.null_mean is None and found.null_bound is not None and found.score.value < found.null_bound
