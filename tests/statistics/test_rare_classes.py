"""Scores in which all classes count the same, where a class has few test rows: intervals cover, p agrees with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm

from probing.contracts.measure import Measure, Prediction
from probing.labels import Labels
from probing.measures.accuracy import Accuracy
from probing.measures.auroc import AUROC
from probing.measures.balanced_accuracy import BalancedAccuracy
from probing.measures.macro_f1 import MacroF1
from probing.measures.r2 import R2
from probing.measures.recall_at_fpr import RecallAtFPR
from probing.results.probe import Gain, MeasureResult
from probing.statistics.clusters import Resampler
from probing.training import scoring
from probing.training.scoring import Sampled, measure_results, score_of
from tests.samples.counting import at_most

FPR, R, TAIL = 0.05, 300, 1e-3
MEASURES: dict[str, Measure] = {
    "macro_f1": MacroF1(),
    "balanced_accuracy": BalancedAccuracy(),
    "auroc": AUROC(),
    "recall_at_fpr": RecallAtFPR(fpr=FPR),
}
FEW = ((100, 1), (100, 3), (300, 3), (100, 10), (300, 30))  # test rows, rows of the rare class
SKILLS = ((0.6, 0.001), (0.6, 0.02), (0.9, 0.03), (0.97, 0.01))  # true recall, true rate of false positives


def labels_of(n: int, rare: int, *, size: int = 1) -> Labels:
    """Test rows of two classes, in clusters of `size` rows; those of the rare class come first."""
    y, rows = (np.arange(n) < rare).astype(np.int64), np.arange(n)
    return Labels("t", "classes", y, ("neg", "pos"), np.full(n, "test"), rows // size, rows, np.full(n, -1), rows)


@cache
def resampler_of(n: int, rare: int, size: int = 1) -> Resampler:
    return Resampler.of(labels_of(n, rare, size=size), "test", resamples=R, root_seed=1)


def guess(n: int, share: float) -> Prediction:
    """Of a probe that knows the label frequencies."""
    return Prediction(np.zeros(n, np.int64), np.tile(np.log([1 - share, share]), (n, 1)))


def predictions(random: np.random.Generator, y: NDArray[np.int64], gap: float, threshold: float) -> Prediction:
    """Normal scores of two classes `gap` apart; those beyond the threshold are flagged."""
    odds = random.normal(size=len(y)) + gap * y - threshold
    return Prediction((odds > 0).astype(np.int64), -np.logaddexp(0, np.stack([odds, -odds], axis=1)))


def truth(gap: float, threshold: float, share: float) -> dict[str, float]:
    """The scores over endless rows, of which `share` are of the rare class."""
    recall, false = norm.sf(threshold - gap), norm.sf(threshold)
    hits, flagged = share * recall, share * recall + (1 - share) * false
    others = (1 - share) * (1 - false)
    f1 = 2 * hits / (flagged + share), 2 * others / (1 - flagged + 1 - share)
    return {
        "macro_f1": float(np.mean(f1)),
        "balanced_accuracy": float(recall + 1 - false) / 2,
        "auroc": float(norm.cdf(gap / np.sqrt(2))),
        "recall_at_fpr": float(norm.sf(norm.isf(FPR) - gap)),
    }


def guessed(share: float) -> dict[str, float]:
    return {
        "macro_f1": (1 - share) / (2 - share),
        "balanced_accuracy": 0.5,
        "auroc": 0.5,
        "recall_at_fpr": 0.0,
    }


def sampled(measure: Measure, y: NDArray[np.int64], one: Prediction, resampler: Resampler) -> Sampled:
    samples = scoring._resampled(measure, y, one, resampler, None)[None]
    ends = scoring._ends(measure, y, [one], resampler, None)
    return Sampled(np.array([measure.value(y, one)]), samples, None, None, *ends)


def judged(
    y: NDArray[np.int64], one: Prediction, other: Prediction, resampler: Resampler, measures: Mapping[str, Measure]
) -> dict[str, MeasureResult]:
    """The scores of a probe, and its gains over another, by measure."""
    task, base = (
        {(name, "test"): sampled(measure, y, of, resampler) for name, measure in measures.items()}
        for of in (one, other)
    )
    found = measure_results(task, {}, {"prior": base}, measures, {"test": resampler})
    return {of.measure: of for of in found}


def of_rows(n: int, rare: int) -> tuple[NDArray[np.int64], Resampler]:
    return labels_of(n, rare).y, resampler_of(n, rare)


def covers(n: int, rare: int, seeds: int) -> None:
    """Check that of `seeds` draws of each skill, few intervals miss the true score, by measure."""
    y, resampler = of_rows(n, rare)

    def misses(seed: int, name: str) -> bool:
        recall, false = SKILLS[seed % len(SKILLS)]
        threshold = norm.isf(false)
        gap = threshold - norm.isf(recall)
        one = predictions(np.random.default_rng([rare, seed]), y, gap, threshold)
        score = score_of(sampled(MEASURES[name], y, one, resampler), MEASURES[name], resampler)
        return not score.low - 1e-9 <= truth(gap, threshold, rare / n)[name] <= score.high + 1e-9

    draws = range(seeds * len(SKILLS))
    most = len(draws) - binom.ppf(TAIL, len(draws), 0.93)
    wide = {name: at_most(most, partial(misses, name=name), draws) for name in MEASURES}
    assert all(wide.values()), wide


@pytest.mark.parametrize(("n", "rare"), FEW)
def test_intervals_cover_the_true_score(n: int, rare: int) -> None:
    covers(n, rare, 6)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "rare"), [*FEW, (300, 45)])
def test_intervals_cover_the_true_score_in_many_seeds(n: int, rare: int) -> None:
    covers(n, rare, 60)


def gains_at_the_margin(n: int, rare: int, seeds: int, name: str) -> list[Callable[[], Gain]]:
    """Draws of gains of probes whose true gain is the margin, and no more, of each rate of false positives in turn."""
    y, resampler = of_rows(n, rare)
    measures, base, other = {name: MEASURES[name]}, guessed(rare / n)[name] + 0.02, guess(n, rare / n)
    draws: list[list[Callable[[], Gain]]] = []
    for false in (0.001, 0.02, 0.2):
        threshold = norm.isf(false)

        def beyond(gap: float, threshold: float = threshold) -> float:
            return truth(gap, threshold, rare / n)[name] - base

        if beyond(-3.0) * beyond(6.0) < 0:
            gap, random = brentq(beyond, -3.0, 6.0), np.random.default_rng(rare)

            def draw(gap: float = gap, threshold: float = threshold, random: np.random.Generator = random) -> Gain:
                of = judged(y, predictions(random, y, gap, threshold), other, resampler, measures)
                return of[name].gains[0]

            draws.append([draw] * seeds)
    return [draw for of_seed in zip(*draws, strict=True) for draw in of_seed]


@pytest.mark.parametrize("name", MEASURES)
def test_a_gain_of_the_margin_is_seldom_shown_to_exceed_it(name: str) -> None:
    found = [draw() for n, rare in FEW for draw in gains_at_the_margin(n, rare, 3, name)]
    assert sum(gain.p < 0.05 for gain in found) <= binom.ppf(1 - TAIL, len(found), 0.05)
    assert all((gain.p < 0.025) == (gain.gain.low > gain.margin) for gain in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(("n", "rare"), FEW)
def test_a_gain_of_the_margin_is_seldom_shown_to_exceed_it_in_many_seeds(n: int, rare: int, name: str) -> None:
    draws = gains_at_the_margin(n, rare, 60, name)
    assert at_most(binom.ppf(1 - TAIL, len(draws), 0.05), lambda k: draws[k]().p < 0.05, range(len(draws)))


@pytest.mark.parametrize("rare", [1, 3, 10])
def test_p_and_interval_agree_and_what_is_all_right_is_as_uncertain_as_its_rows_are_few(rare: int) -> None:
    y, resampler = of_rows(100, rare)
    right = Prediction(y, np.where(np.eye(2)[y] > 0, -1e-6, -14.0))
    found = judged(y, right, guess(100, rare / 100), resampler, MEASURES)
    least = binomtest(rare, rare).proportion_ci(0.95, "exact").low
    recall = 2 * found["balanced_accuracy"].score.low - 1
    assert recall == pytest.approx(least, abs=0.06)
    for name, of in found.items():
        (gain,) = of.gains
        assert (gain.p < 0.025) == (gain.gain.low > gain.margin), name
        assert of.score.high == 1.0 and of.score.low < (1.0 if rare == 1 else 0.9), name
        assert gain.gain.low <= gain.gain.value <= gain.gain.high


def test_a_constant_guess_is_never_given_a_score_that_it_cannot_reach() -> None:
    y, resampler = of_rows(100, 1)
    found = judged(y, guess(100, 0.01), guess(100, 0.01), resampler, MEASURES)
    for name in ("balanced_accuracy", "auroc"):
        assert (found[name].score.low, found[name].score.high) == pytest.approx((0.5, 0.5))
        assert found[name].gains[0].p == 1.0
    assert found["macro_f1"].score.high < 0.5


def test_what_has_rows_enough_is_scored_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    measures = MEASURES | {"accuracy": Accuracy()}
    y, resampler = of_rows(300, 120)
    one, other = predictions(np.random.default_rng(0), y, 1.0, 0.5), guess(300, 0.4)
    found = judged(y, one, other, resampler, measures)
    monkeypatch.setattr(scoring, "FEW", 0)
    assert judged(y, one, other, resampler, measures) == found
    y, resampler = of_rows(300, 3)
    one = predictions(np.random.default_rng(0), y, 1.0, 0.5)
    before = judged(y, one, guess(300, 0.01), resampler, measures)
    monkeypatch.undo()
    now = judged(y, one, guess(300, 0.01), resampler, measures)
    assert [name for name in measures if now[name] == before[name]] == ["accuracy"]


def test_rows_of_one_cluster_count_once() -> None:
    assert (resampler_of(120, 12).fewest, resampler_of(120, 12, 4).fewest) == pytest.approx((12, 3))


def test_a_score_that_some_resamples_leave_undefined_has_an_interval_of_some_width() -> None:
    target, rows = np.array([0.0, 1.0]), np.arange(2)
    labels = Labels("t", "real", target, (), np.full(2, "test"), rows, rows, np.full(2, -1), rows)
    resampler = Resampler.of(labels, "test", resamples=R, root_seed=1)
    score = score_of(sampled(R2(), target, Prediction(np.array([0.1, 0.8])), resampler), R2(), resampler)
    assert score.low < score.value - 0.05 and score.high == 1.0
