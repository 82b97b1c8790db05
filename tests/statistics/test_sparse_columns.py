"""Columns of a sparse matrix as classifiers: all at once they get what scikit-learn gives one by one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import f1_score, roc_auc_score

from probing.statistics.sparse_columns import SortedColumns, mean_differences

RANDOM = np.random.default_rng(0)
X = np.maximum(0, np.round(RANDOM.standard_normal((300, 12)) - 0.8, 1)).astype(np.float32)  # with ties
X[:, 3] = 0
Y = RANDOM.integers(0, 3, 300)


@pytest.mark.parametrize("label", range(3))
def test_areas_are_those_of_scikit_learn(label: int) -> None:
    has = label == Y
    expected = [roc_auc_score(has, X[:, column]) for column in range(12)]
    np.testing.assert_allclose(SortedColumns.of(csr_array(X)).areas(has), expected, atol=1e-12)


@pytest.mark.parametrize("before", [0.0, 0.2])
def test_the_best_cut_has_the_largest_f1_of_all_cuts(before: float) -> None:
    columns, has, fired = SortedColumns.of(csr_array(X)), Y == 1, RANDOM.random(300) < before
    best, cuts = columns.best_cuts(has, fired)
    for column in range(12):
        scores = [f1_score(has, fired | (X[:, column] >= cut)) for cut in np.unique(X[:, column]) if cut > 0]
        if scores:
            assert best[column] == pytest.approx(max(scores))
            assert f1_score(has, fired | (X[:, column] >= cuts[column])) == pytest.approx(best[column])
        else:
            assert (best[column], cuts[column]) == (0.0, np.inf)


def test_mean_differences_are_of_each_class_against_the_rest() -> None:
    expected = [max(abs(x[c == Y].mean() - x[c != Y].mean()) for c in range(3)) for x in X.T.astype(float)]
    np.testing.assert_allclose(mean_differences(X, Y, 3), expected, atol=1e-6)
    np.testing.assert_allclose(mean_differences(csr_array(X), Y, 3), expected, atol=1e-6)
    np.testing.assert_allclose(mean_differences(X, Y, 5), expected, atol=1e-6)  # classes without rows change nothing
    assert not mean_differences(X, np.zeros(300, np.int64), 2).any()


def test_a_matrix_without_entries_has_no_active_column() -> None:
    empty = SortedColumns.of(csr_array((5, 4), dtype=np.float32))
    has = np.array([True, False, True, False, False])
    assert len(empty.active) == 0
    np.testing.assert_array_equal(empty.areas(has), np.full(4, 0.5))
    assert empty.best_cuts(has, np.zeros(5, bool))[0].tolist() == [0.0] * 4
