"""Laws of thresholds: false positives are as asked on average, intervals cover, and too few rows are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

import probing as pb
from probing.errors import BadParameter, DegenerateDesign
from probing.statistics.thresholds import AskedThreshold, Threshold, choose_threshold

FPR = 0.02


def study(random: np.random.Generator, size: int) -> Threshold:
    """A threshold on normal scores; in clusters of `size` rows half of the variance is shared."""

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        cluster = np.arange(n) // size
        shared = random.standard_normal(n)[cluster] * np.sqrt(0.5)
        own = random.standard_normal(n)
        return (own if size == 1 else shared + own * np.sqrt(0.5)), cluster

    (dev, _), (other, a), (own, b) = draw(400), draw(600), draw(300)
    return choose_threshold(
        np.concatenate([dev, own[:50] + 2]),
        np.arange(450) >= 400,
        np.concatenate([other, own + 2]),
        np.arange(900) >= 600,
        fpr=FPR,
        clusters=np.concatenate([a, b + 10**6]),
    )


def coverage(size: int, count: int) -> tuple[float, float, float]:
    """Share of studies whose intervals hold the true false positives and recall, and mean true false positives."""
    random = np.random.default_rng(size)
    found = [study(random, size) for _ in range(count)]
    true = norm.sf([one.value for one in found])
    recall = norm.sf([one.value - 2 for one in found])
    covered = [one.false_positives.low <= t <= one.false_positives.high for one, t in zip(found, true, strict=True)]  # type: ignore[union-attr]
    recalled = [one.recall.low <= t <= one.recall.high for one, t in zip(found, recall, strict=True)]  # type: ignore[union-attr]
    return float(np.mean(covered)), float(np.mean(recalled)), float(np.mean(true))


@pytest.mark.parametrize("size", [1, 5])
def test_intervals_cover_in_a_few_studies(size: int) -> None:
    positives, recall, _ = coverage(size, 60)
    assert min(positives, recall) >= 0.85  # 95 % less three standard errors


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 5])
def test_intervals_cover_in_many_studies(size: int) -> None:
    positives, recall, true = coverage(size, 500)
    assert min(positives, recall) >= 0.92
    assert true == pytest.approx(FPR, abs=0.003)


def test_the_threshold_is_the_least_that_keeps_the_chance_of_a_new_row() -> None:
    scores = np.arange(99.0)
    found = choose_threshold(scores, np.zeros(99, bool), fpr=0.01)
    assert found.value == 98 and found.recall is None
    assert choose_threshold(np.arange(199.0), np.zeros(199, bool), fpr=0.01).value == 197
    assert found.flags([97, 98, 99]).tolist() == [False, False, True]


def test_too_few_negatives_are_refused_with_the_number_needed() -> None:
    with pytest.raises(DegenerateDesign, match="at least 99 rows") as caught:
        pb.choose_threshold(np.arange(98.0), np.zeros(98, bool), fpr=0.01)
    assert caught.value.found == "98"


def test_no_false_positive_still_has_an_interval() -> None:
    random = np.random.default_rng(0)
    clusters = np.arange(100) // 5
    found = choose_threshold(
        random.random(100), np.zeros(100), random.random(100) - 9, np.zeros(100), clusters=clusters
    )
    assert found.false_positives is not None and found.false_positives.clusters == 20
    assert found.false_positives.high == pytest.approx(1 - 0.025 ** (1 / 20), abs=1e-6)


def test_a_threshold_survives_its_card() -> None:
    random = np.random.default_rng(0)
    has, groups = np.arange(200) < 100, np.where(np.arange(200) % 2, "a", "b")
    found = choose_threshold(
        random.random(200), has, random.random(200), has, fpr=0.1, groups=groups, by="g", label="x"
    )
    assert Threshold.of(found.facts()) == found
    assert set(found.groups) == {"a", "b"} and "on test recall" in str(found)


@pytest.mark.parametrize("text", ["0.01", "fpr=2", "fpr=0", "fpr=x", "recall=0.5", "fpr=0.1,of=x", "", 0.05])
def test_other_forms_are_refused(text: Any) -> None:
    with pytest.raises(BadParameter, match="not a threshold"):
        AskedThreshold.parse(text)
    assert AskedThreshold.parse("fpr=0.01,label=yes,by=topic") == AskedThreshold(0.01, "yes", "topic")


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BadParameter, match="a score and a flag"):
        choose_threshold([np.nan, 1.0], [0, 1], fpr=0.5)


def rate_in_new_groups(shared: float, groups: int, per_group: int, fpr: float, count: int) -> tuple[float, float]:
    """Mean share of rows of new groups that is flagged, and its standard error; `shared` is the groups' variance."""
    random = np.random.default_rng(groups)
    rates = []
    for _ in range(count):
        centres = random.standard_normal(groups) * np.sqrt(shared)
        scores = np.repeat(centres, per_group) + random.standard_normal(groups * per_group) * np.sqrt(1 - shared)
        homes = np.repeat(np.arange(groups), per_group)
        found = choose_threshold(scores, np.zeros(len(scores), bool), fpr=fpr, dev_clusters=homes)
        rates.append(norm.sf(found.value))
    return float(np.mean(rates)), float(np.std(rates) / np.sqrt(count))


@pytest.mark.parametrize(("shared", "groups"), [(0.9, 20), (0.9, 60), (0.5, 25), (0.0, 40)])
def test_rows_of_new_groups_are_flagged_no_oftener_than_asked(shared: float, groups: int) -> None:
    rate, error = rate_in_new_groups(shared, groups, 8, 0.05, 300)
    assert rate <= 0.05 + 3 * error


def test_groups_of_one_row_are_rows_that_are_independent() -> None:
    scores = np.random.default_rng(3).standard_normal(250)
    none = np.zeros(250, bool)
    for fpr in (0.01, 0.05, 0.3):
        alone = choose_threshold(scores, none, fpr=fpr)
        assert choose_threshold(scores, none, fpr=fpr, dev_clusters=np.arange(250)).value == alone.value
        assert (scores > alone.value).sum() + 1 <= fpr * 251 < (scores >= alone.value).sum() + 1


def test_groups_are_counted_and_not_their_rows() -> None:
    scores, homes = np.random.default_rng(3).standard_normal(600), np.repeat(np.arange(6), 100)
    with pytest.raises(DegenerateDesign, match="groups") as caught:
        choose_threshold(scores, np.zeros(600, bool), fpr=0.05, dev_clusters=homes)
    assert "19" in str(caught.value) and "6 (600 rows)" in str(caught.value)


def test_equal_scores_are_above_together_or_not_at_all() -> None:
    scores = np.repeat([1.0, 0.0], [30, 70])
    found = choose_threshold(scores, np.zeros(100, bool), fpr=0.1)
    assert found.value == 1.0 and not found.flags(scores).any()
