"""Intervals of the chance check: they hold the score on labels without meaning that other rows would give."""

from __future__ import annotations

import numpy as np
import pytest

from probing.controls.shuffled_labels import ShuffledLabelsControl
from probing.labels import Labels
from probing.measures.accuracy import Accuracy
from probing.probes.prior import PriorProbe
from probing.statistics.clusters import Resampler
from probing.training.scoring import ControlScores, measure_results, score_label_set


def labels_of(random, *, share, clusters, rows):
    """Labels of train and test; all rows of a cluster have one label, `share` of them the label 0."""
    n = clusters * rows
    groups = np.repeat(np.arange(2 * clusters), rows)
    y = np.repeat((random.random(2 * clusters) > share).astype(np.int64), rows)
    y[:2] = [0, 1]  # train has both
    split = np.repeat(["train", "test"], n)
    order = np.arange(2 * n)
    return Labels("t", "classes", y, ("a", "b"), split, groups, order, np.full(2 * n, -1), order)


def comparison(labels, X, probe, *, draws=3):
    """The comparison of a probe with the chance check on test, and its score."""
    resamplers = {"test": Resampler.of(labels, "test", resamples=300, root_seed=1)}
    made = [ShuffledLabelsControl().apply(labels, draw=draw, seed=0) for draw in range(draws)]
    states = {split: X[labels.rows(split)] for split in ("train", "test")}

    def scored(one):
        fit = probe.with_seed(0).fit(states["train"], one.y[one.rows("train")])
        return score_label_set([fit], one, states, {"accuracy": Accuracy()}, resamplers, seen=None, tempers=None)

    control = ControlScores(False, [None] * draws, [scored(one) for one in made], permutes=True)
    (found,) = measure_results(scored(labels), {"shuffled_labels": control}, {}, {"accuracy": Accuracy()}, resamplers)
    return found.comparisons[0], found.score


@pytest.mark.parametrize(("clusters", "rows"), [(60, 1), (30, 5)])
def test_intervals_of_the_chance_check_cover_its_level(clusters, rows):
    random, covered, repeats = np.random.default_rng(0), 0, 120
    for _ in range(repeats):
        labels = labels_of(random, share=0.75, clusters=clusters, rows=rows)
        found, _ = comparison(labels, np.zeros((len(labels), 1)), PriorProbe())
        covered += found.score.low <= 0.75 <= found.score.high
    assert 0.88 <= covered / repeats <= 0.99, covered / repeats


class _First(PriorProbe):
    """Predicts label 0 where the first coordinate is positive: its level on labels that mean nothing is known."""

    def predict_log_proba(self, X):
        return np.log(np.where(np.asarray(X)[:, :1] > 0, [[0.9, 0.1]], [[0.1, 0.9]]))


@pytest.mark.parametrize(("clusters", "rows"), [(60, 1), (30, 5)])
def test_they_cover_it_for_predictions_that_vary_within_and_between_clusters(clusters, rows):
    random, covered, repeats, level = np.random.default_rng(1), 0, 120, 0.8 * 0.75 + 0.2 * 0.25
    for _ in range(repeats):
        labels = labels_of(random, share=0.75, clusters=clusters, rows=rows)
        X = np.repeat(random.random((2 * clusters, 1)) - 0.2, rows, axis=0)
        found, _ = comparison(labels, X, _First())
        covered += found.score.low <= level <= found.score.high
    assert 0.88 <= covered / repeats <= 1.0, covered / repeats


def test_a_constant_prediction_is_above_the_chance_check_by_nothing_and_both_have_one_interval():
    labels = labels_of(np.random.default_rng(3), share=0.6, clusters=12, rows=4)
    found, score = comparison(labels, np.zeros((len(labels), 1)), PriorProbe())
    assert (found.selectivity.value, found.selectivity.low, found.selectivity.high) == (0.0, 0.0, 0.0)
    assert found.score.value == score.value
    assert (found.score.low, found.score.high) == pytest.approx((score.low, score.high), abs=1e-9)


def test_labels_from_outside_the_scored_rows_have_weights_of_their_own():
    labels = labels_of(np.random.default_rng(4), share=0.6, clusters=20, rows=2)
    made = ShuffledLabelsControl().apply(labels, draw=0, seed=0)
    one = Resampler.of(labels, "test", resamples=50, root_seed=1)
    np.testing.assert_array_equal(one.by_origin(made).weights, one.weights)
    half = Resampler.of(
        labels.take(np.r_[labels.rows("train"), labels.rows("test")[:20]]), "test", resamples=50, root_seed=1
    )
    part = made.take(np.r_[labels.rows("train"), labels.rows("test")[:20]])
    moved = half.by_origin(part)
    assert moved.weights.shape[1] > half.weights.shape[1] and moved.groups.max() < moved.weights.shape[1]
    np.testing.assert_array_equal(moved.weights[:, : half.weights.shape[1]], half.weights)
