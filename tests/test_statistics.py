"""Laws of the statistics: errors and intervals that cover planted truths, p that is uniform, Holm by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from probing import statistics
from probing.statistics import (
    cluster_weights,
    holm,
    interval,
    one_sided_p,
    replicates,
    selectivity_interval,
    unvaried_interval,
    unvaried_p,
)  # fmt: skip

S, R, STUDIES = 80, 400, 500


def ratio(values: NDArray[np.float64], groups: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(R,)` means of rows under cluster weights, as a measure computes them."""
    sums = np.stack([np.bincount(groups, values), np.bincount(groups)], axis=1)
    totals: NDArray[np.float64] = weights @ sums
    return totals[:, 0] / totals[:, 1]


def clustered_rows(random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows of mean 0 in clusters of 1 to 12 rows that share most of their deviation."""
    groups = np.repeat(np.arange(S), random.integers(1, 13, S))
    return random.normal(size=S)[groups] + 0.5 * random.normal(size=len(groups)), groups


def test_every_resample_draws_as_many_clusters_as_there_are() -> None:
    weights = cluster_weights(S, resamples=R, seed=3)
    assert weights.shape == (R, S) and (weights.sum(1) == S).all() and (weights == weights.round()).all()
    assert (weights.mean(), weights.var()) == pytest.approx((1.0, 1 - 1 / S), rel=0.03)
    assert np.abs(weights.mean(0) - 1).max() < 5 / math.sqrt(R)
    assert (cluster_weights(S, resamples=R, seed=3) == weights).all()
    assert (cluster_weights(S, resamples=R, seed=4) != weights).any()


def test_weights_too_large_for_double_are_the_same_counts_in_single(monkeypatch: pytest.MonkeyPatch) -> None:
    double = cluster_weights(S, resamples=R)
    monkeypatch.setattr(statistics, "_DOUBLE_CELLS", R * S - 1)
    single = cluster_weights(S, resamples=R)
    assert (double.dtype, single.dtype) == (np.float64, np.float32) and (single == double).all()


def test_interval_is_the_quantiles_of_what_is_known() -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert interval(samples) == pytest.approx((25, 975))
    assert interval(samples, level=0.8) == pytest.approx((100, 900))
    assert interval(np.r_[samples, np.full(500, np.nan)]) == interval(samples)
    assert all(map(math.isnan, interval(np.full(5, np.nan))))


def test_standard_error_is_the_cluster_formula_and_not_that_of_independent_rows() -> None:
    values, groups = clustered_rows(np.random.default_rng(5))
    found = ratio(values, groups, cluster_weights(S, resamples=4000, seed=1)).std()
    residuals = np.bincount(groups, values - values.mean())
    assert found == pytest.approx(math.sqrt((residuals**2).sum()) / len(values), rel=0.08)
    assert found > 1.5 * values.std() / math.sqrt(len(values))


def test_cluster_intervals_cover_the_truth_and_row_intervals_do_not() -> None:
    random, hits = np.random.default_rng(0), np.zeros(2)
    weights = cluster_weights(S, resamples=R, seed=1)
    for _ in range(2 * STUDIES):
        values, groups = clustered_rows(random)
        rows = np.arange(len(values))
        single = cluster_weights(len(values), resamples=100, seed=2)
        for which, samples in enumerate((ratio(values, groups, weights), ratio(values, rows, single))):
            low, high = interval(samples)
            hits[which] += low <= 0 <= high
    by_cluster, by_row = hits / (2 * STUDIES)
    assert 0.92 <= by_cluster <= 0.97
    assert by_row < 0.8


def planted(random: np.random.Generator, *, draws: int, seeds: int, gap: float) -> tuple[NDArray[np.float64], ...]:
    """Samples of a task `(seeds, R)` and a control `(draws, seeds, R)`: rows and draws vary, and fits if seeds do."""
    weights = cluster_weights(S, resamples=R, seed=1) / S
    fits = 0.5 * random.normal(size=(1 + draws, 1, S)) + random.normal(size=S)
    by_draw, by_seed = random.normal(size=(draws, 1, 1)), random.normal(size=(1 + draws, seeds, 1))
    scores = fits @ weights.T + 0.05 * by_seed * (seeds > 1)
    return gap + scores[0], scores[1:] + 0.1 * by_draw


@pytest.mark.parametrize(("draws", "seeds", "gap"), [(5, 1, 0.0), (5, 4, 0.3), (1, 5, 0.0)])
def test_selectivity_intervals_cover_the_planted_selectivity(draws: int, seeds: int, gap: float) -> None:
    random, hits = np.random.default_rng(draws + seeds), 0
    for study in range(STUDIES):
        task, control = planted(random, draws=draws, seeds=seeds, gap=gap)
        low, high = selectivity_interval(task, control, seed=study)
        hits += low <= gap <= high
    # A single draw cannot show the variation between draws: the interval then speaks of that draw alone.
    assert 0.93 <= hits / STUDIES <= 0.98 if draws > 1 else hits / STUDIES < 0.9


def test_selectivity_of_a_task_that_is_its_own_control_is_nought() -> None:
    task, _ = planted(np.random.default_rng(0), draws=1, seeds=3, gap=0.2)
    assert selectivity_interval(task, np.stack([task] * 5)) == (0.0, 0.0)
    low, high = selectivity_interval(task, np.stack([task - 0.3] * 5))
    assert (low, high) == pytest.approx((0.3, 0.3))
    assert np.ptp(interval(task[0])) > 0.3


def test_selectivity_changes_sign_where_lower_is_better() -> None:
    task, control = planted(np.random.default_rng(0), draws=4, seeds=2, gap=0.3)
    low, high = selectivity_interval(task, control, seed=1)
    assert selectivity_interval(task, control, higher_is_better=False, seed=1) == pytest.approx((-high, -low))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("m", [2, 5, 9])
def test_draws_and_seeds_add_the_variance_of_their_mean(axis: int, m: int) -> None:
    scores = np.random.default_rng(m).normal(size=m)
    samples = np.broadcast_to(np.expand_dims(scores, (1 - axis, 2)), (m, 1, 20000) if axis == 0 else (1, m, 20000))
    found = replicates(samples)
    assert found.mean() == pytest.approx(scores.mean(), abs=0.02)
    assert found.var() == pytest.approx(scores.var(ddof=1) / m, rel=0.05)


def test_one_draw_and_one_seed_leave_the_samples_as_they_are() -> None:
    samples = np.random.default_rng(0).normal(size=(1, 1, R))
    assert (replicates(samples) == samples[0, 0]).all()


def test_p_is_the_normal_tail_beyond_the_margin() -> None:
    samples = np.random.default_rng(0).normal(0.3, 0.1, R)
    expected = norm.sf((0.3 - 0.02) / samples.std(ddof=1))
    assert one_sided_p(0.3, samples, margin=0.02) == pytest.approx(expected, rel=1e-9)
    assert one_sided_p(0.02, samples, margin=0.02) == 0.5
    assert one_sided_p(0.3, np.r_[samples, np.nan], margin=0.02) == pytest.approx(expected, rel=1e-9)


def test_p_of_a_gain_that_never_varies_is_certain_and_of_one_unknown_is_one() -> None:
    same = np.full(R, 0.25)
    assert (one_sided_p(0.25, same), one_sided_p(0.25, same, margin=0.25)) == (0.0, 1.0)
    assert one_sided_p(0.25, np.full(R, np.nan)) == one_sided_p(math.nan, np.linspace(0, 1, R)) == 1.0


def test_p_is_uniform_where_the_gain_is_the_margin() -> None:
    random, weights = np.random.default_rng(4), cluster_weights(S, resamples=R, seed=1) / S
    studies = 0.02 + random.normal(size=(STUDIES, S))
    p = np.array([one_sided_p(x.mean(), weights @ x, margin=0.02) for x in studies])
    assert [(p <= level).mean() for level in (0.05, 0.25, 0.5, 0.75)] == pytest.approx(
        [0.05, 0.25, 0.5, 0.75], abs=0.06
    )
    assert 0.02 <= (p <= 0.05).mean() <= 0.08


def test_holm_is_what_is_computed_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.6, 0.02]) == pytest.approx([0.8, 0.8, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06] * 3)
    assert (holm([0.03]), holm([])) == ([0.03], [])


def test_holm_keeps_family_wise_error_that_unadjusted_tests_lose() -> None:
    p = np.random.default_rng(0).random((2000, 10))
    assert (p.min(1) <= 0.05).mean() > 0.3
    assert np.mean([min(holm(row)) <= 0.05 for row in p.tolist()]) == pytest.approx(0.05, abs=0.015)


def test_holm_follows_its_input_in_any_order_and_is_never_below_it() -> None:
    p = np.random.default_rng(1).random(30) ** 4
    found, order = np.array(holm(p.tolist())), np.random.default_rng(2).permutation(30)
    assert holm(p[order].tolist()) == found[order].tolist()
    assert (found >= p).all() and (np.diff(found[np.argsort(p)]) >= 0).all()


@pytest.mark.parametrize("n", [1, 5, 24, 300])
def test_the_bound_of_what_never_varied_is_the_exact_binomial_one_at_0_and_1(n: int) -> None:
    exact = binomtest(n, n).proportion_ci(0.95, "exact")
    assert unvaried_interval(1.0, n, least=0.0, most=1.0) == pytest.approx((exact.low, exact.high))
    low, high = unvaried_interval(0.0, n, least=0.0, most=1.0)
    assert (low, high) == pytest.approx((0.0, 1 - exact.low))


def test_a_gain_that_never_varied_is_bounded_on_both_sides_and_its_p_agrees_with_its_interval() -> None:
    assert unvaried_interval(0.0, 20, least=-1.0, most=1.0) == pytest.approx((-0.168, 0.168), abs=1e-3)
    low, _ = unvaried_interval(0.5, 20, least=-1.0, most=1.0)
    assert unvaried_p(0.5, 20, margin=low, least=-1.0) == pytest.approx(0.025)
    assert unvaried_p(0.5, 20, margin=low + 0.01, least=-1.0) > 0.025
    assert unvaried_p(0.02, 20, margin=0.02, least=-1.0) == 1.0 > unvaried_p(1.0, 2, margin=0.02, least=-1.0) > 0.025


def test_a_score_that_hardly_ever_errs_is_covered_where_the_bootstrap_alone_says_exactly_1() -> None:
    truth, n = 0.97, 12
    studies = np.random.default_rng(0).random((1000, n)) < truth
    weights = cluster_weights(n, resamples=R) / n
    alone = np.array([interval(weights @ right) for right in studies])
    mended = np.array(
        [unvaried_interval(1.0, n, least=0.0, most=1.0) if high - low < 1e-9 else (low, high) for low, high in alone]
    )
    covered = [((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean() for bounds in (alone, mended)]
    assert covered[0] < 0.4 and covered[1] > 0.95
