"""Laws of the statistics: errors and intervals that cover planted truths, p that is uniform, Holm by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, false_discovery_control, norm, t

from probing.statistics import bootstrap
from probing.statistics.bootstrap import (
    cluster_weights,
    detectable,
    gained,
    interval,
    one_sided_p,
    replicates,
    two_sided_p,
    unvaried_interval,
    unvaried_p,
)
from probing.statistics.multiplicity import adjust, benjamini_hochberg, holm, level_after

S, R, STUDIES = 80, 400, 500
WEIGHTS = cluster_weights(S, resamples=R, seed=1)


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
    monkeypatch.setattr(bootstrap, "_DOUBLE_CELLS", R * S - 1)
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


def planted(
    random: np.random.Generator, *, draws: int, seeds: int, rows: float, apart: float, drawn: float, gap: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Samples of a task `(seeds, R)` and a control `(draws, seeds, R)`.

    Rows of the task, rows of each draw, draws, and fits (where there are seeds) vary: by `rows`, `apart`, `drawn`.
    """
    weights = WEIGHTS / S
    fits = 0.05 * random.normal(size=(1 + draws, seeds, 1)) * (seeds > 1)
    task = (rows * random.normal(size=S) + apart * random.normal(size=S)) @ weights.T
    control = apart * random.normal(size=(draws, 1, S)) @ weights.T + drawn * random.normal(size=(draws, 1, 1))
    return gap + task + fits[0], control + fits[1:]


# What varies, and by what: rows the same for all draws, rows of each draw, draws.
VARIED = {"draws": (0.0, 0.0, 0.1), "rows": (1.0, 0.0, 0.0), "rows of draws": (0.0, 1.0, 0.0), "all": (0.5, 0.5, 0.2)}


@pytest.mark.parametrize("varied", VARIED)
@pytest.mark.parametrize(("draws", "seeds"), [(3, 1), (5, 1), (5, 4)])
def test_selectivity_intervals_cover_the_planted_selectivity(varied: str, draws: int, seeds: int) -> None:
    random, hits = np.random.default_rng(draws + seeds), 0
    rows, apart, drawn = VARIED[varied]
    for study in range(STUDIES):
        parts = planted(random, draws=draws, seeds=seeds, rows=rows, apart=apart, drawn=drawn, gap=0.3)
        low, high = gained(*parts, clusters=S, seed=study).interval
        hits += low <= 0.3 <= high
    assert 0.92 <= hits / STUDIES <= 0.98


def test_a_single_draw_cannot_show_the_variation_between_draws() -> None:
    random, hits = np.random.default_rng(0), 0
    for _ in range(STUDIES):
        task, control = planted(random, draws=1, seeds=1, rows=0.5, apart=0.5, drawn=0.3)
        low, high = gained(task, control, clusters=S).interval
        hits += low <= 0 <= high
    assert hits / STUDIES < 0.8


def test_selectivity_of_a_task_that_is_its_own_control_is_nought() -> None:
    task, _ = planted(np.random.default_rng(0), draws=1, seeds=3, rows=1.0, apart=0.0, drawn=0.0)
    assert gained(task, np.stack([task] * 5), clusters=S).interval == (0.0, 0.0)
    assert gained(task, np.stack([task - 0.3] * 5), clusters=S).interval == pytest.approx((0.3, 0.3))
    assert np.ptp(interval(task[0])) > 0.3


def test_a_gain_changes_sign_where_lower_is_better() -> None:
    task, control = planted(np.random.default_rng(0), draws=4, seeds=2, rows=1.0, apart=0.5, drawn=0.3)
    found = gained(task, control, clusters=S)
    turned = gained(task, control, clusters=S, higher_is_better=False)
    assert turned.samples.mean() == pytest.approx(-found.samples.mean(), abs=0.05)
    assert (turned.df, turned.error) == pytest.approx((found.df, found.error), rel=0.1)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("m", [2, 5, 9])
def test_draws_and_seeds_add_the_variance_of_their_mean_and_student_s_interval(axis: int, m: int) -> None:
    scores = np.random.default_rng(m).normal(size=m)
    samples = np.broadcast_to(np.expand_dims(scores, (1 - axis, 2)), (m, 1, 40000) if axis == 0 else (1, m, 40000))
    found = replicates(samples, clusters=S)
    assert found.samples.mean() == pytest.approx(scores.mean(), abs=0.02)
    assert found.samples.var() == pytest.approx(scores.var(ddof=1) / m, rel=0.05)
    assert found.df == pytest.approx(m - 1)
    half = t.ppf(0.975, m - 1) * scores.std(ddof=1) / math.sqrt(m)
    assert found.interval == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.05 * half)


def test_rows_alone_have_the_classical_error_and_as_many_degrees_of_freedom_as_clusters_less_one() -> None:
    values = np.random.default_rng(0).normal(size=S)
    found = replicates((cluster_weights(S, resamples=20000) / S @ values)[None, None], clusters=S)
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(S), rel=0.02)
    assert found.df == pytest.approx(S - 1)
    half = t.ppf(0.975, S - 1) * found.error
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_noise_that_draws_and_rows_share_is_counted_once() -> None:
    random = np.random.default_rng(2)
    found = []
    for _ in range(300):
        _, control = planted(random, draws=5, seeds=1, rows=0.0, apart=1.0, drawn=0.0)
        found.append(replicates(control, clusters=S).samples.var())
    assert np.mean(found) == pytest.approx(1 / S / 5, rel=0.2)


def test_p_is_the_normal_tail_beyond_the_margin() -> None:
    samples = np.random.default_rng(0).normal(0.3, 0.1, R)
    expected = norm.sf((0.3 - 0.02) / samples.std(ddof=1))
    assert one_sided_p(0.3, samples, margin=0.02) == pytest.approx(expected, rel=1e-6)
    assert one_sided_p(0.02, samples, margin=0.02) == 0.5
    assert one_sided_p(0.3, np.r_[samples, np.nan], margin=0.02) == pytest.approx(expected, rel=1e-6)


def test_p_on_few_degrees_of_freedom_is_that_of_student_and_of_two_sides_twice() -> None:
    samples = np.random.default_rng(0).normal(0.3, 0.1, R)
    expected = t.sf(0.28 / samples.std(ddof=1), 4)
    assert one_sided_p(0.3, samples, margin=0.02, df=4) == pytest.approx(expected, rel=1e-9)
    both = 2 * t.sf(0.3 / samples.std(ddof=1), 4)
    assert [two_sided_p(x, samples, df=4) for x in (0.3, -0.3)] == pytest.approx([both, both])
    assert two_sided_p(0.0, samples) == two_sided_p(math.nan, samples) == 1.0


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


def test_benjamini_hochberg_is_what_scipy_computes_and_between_raw_p_and_holm() -> None:
    for seed in range(5):
        p = np.random.default_rng(seed).random(20) ** 3
        found = benjamini_hochberg(p.tolist())
        assert found == pytest.approx(false_discovery_control(p))
        assert (np.array(found) >= p).all() and (np.array(found) <= np.array(holm(p.tolist())) + 1e-12).all()
    assert benjamini_hochberg([0.01, 0.02, 0.04, 0.5]) == pytest.approx([0.04, 0.04, 0.16 / 3, 0.5])
    assert (benjamini_hochberg([]), adjust([0.03, 0.04], "bh")) == ([], [0.04, 0.04])
    assert adjust([0.03, 0.04], "holm") == [0.06, 0.06]


def test_benjamini_hochberg_keeps_the_share_of_false_claims_and_finds_more_than_holm() -> None:
    random, shares, found = np.random.default_rng(0), [], np.zeros(2)
    for _ in range(500):
        p = norm.sf(random.normal(size=20) + np.r_[np.full(10, 3.0), np.zeros(10)]).tolist()
        claims = [np.array(adjust(p, how)) <= 0.1 for how in ("bh", "holm")]
        shares.append(claims[0][10:].sum() / max(1, claims[0].sum()))
        found += [claim[:10].sum() for claim in claims]
    assert np.mean(shares) <= 0.06 and found[0] > 1.2 * found[1]


@pytest.mark.parametrize("df", [4.0, 60.0, math.inf])
def test_a_difference_of_the_detectable_size_is_shown_four_times_in_five(df: float) -> None:
    random, margin, error, n = np.random.default_rng(1), 0.02, 0.01, 20000
    least = detectable(error, df, margin=margin, alpha=0.01)
    seen = random.normal(least, error, n)
    known = error * (np.sqrt(random.chisquare(df, n) / df) if math.isfinite(df) else np.ones(n))
    shown = t.sf((seen - margin) / known, min(df, 1e9)) <= 0.01
    assert shown.mean() == pytest.approx(0.8, abs=0.02 if df > 10 else 0.15)


def test_the_level_of_one_test_shrinks_with_the_family_and_grows_with_what_it_shows() -> None:
    assert level_after([], "holm") == level_after([0.5], "holm") == level_after([0.5], "bh") == 0.025
    assert level_after([0.5] * 10, "holm") == level_after([0.5] * 10, "bh") == pytest.approx(0.0025)
    mixed = [1e-6] * 5 + [0.5] * 5
    assert (level_after(mixed, "holm"), level_after(mixed, "bh")) == pytest.approx((0.0025, 0.0125))


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
