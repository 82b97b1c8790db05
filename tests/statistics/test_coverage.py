"""Intervals cover: 500 simulated studies of clustered sentences, seeds and control draws, by the real measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.measures.accuracy import Accuracy
from probing.measures.auroc import AUROC
from probing.measures.log_loss import LogLoss
from probing.measures.r2 import R2
from probing.statistics.bootstrap import cluster_weights, gained, replicates

S, R, STUDIES = 80, 400, 500
WEIGHTS = cluster_weights(S, resamples=R, seed=1)
TASK, CONTROL, DRAWN, SEEDED = 2.0, 1.0, 0.5, 0.3
MEASURES: dict[str, Measure] = {"accuracy": Accuracy(), "log_loss": LogLoss(), "auroc": AUROC()}


class Sentences:
    """Words of S sentences: a label each, and a state that carries it, the sentence and noise."""

    def __init__(self, random: np.random.Generator, sentences: int = S) -> None:
        self.groups = np.repeat(np.arange(sentences), random.integers(2, 9, sentences))
        self.n = len(self.groups)
        self.shared = 0.6 * random.normal(size=sentences)[self.groups]
        self.y = random.integers(0, 2, self.n)
        self.x = self.shared + random.normal(size=self.n)

    def classified(self, gap: float, shift: float, y: NDArray[Any] | None = None) -> Prediction:
        """Two classes `gap` apart, told apart by a probe whose fit is `shift` off."""
        y = self.y if y is None else y
        odds = gap * (self.x + gap * (y - 0.5) - shift)
        logs = -np.logaddexp(0, np.stack([odds, -odds], axis=1))
        return Prediction(logs.argmax(1), logs)


def scored(measure: Measure, y: NDArray[Any], fits: Sequence[Prediction], groups: NDArray[Any]) -> NDArray[np.float64]:
    """`(seeds, R)`."""
    return np.stack([measure.resampled(y, fit, groups, WEIGHTS) for fit in fits])


def truth(measure: Measure, gap: float, spread: float, seeded: float) -> float:
    """The score over endless sentences, fits and draws of gaps."""
    random = np.random.default_rng(99)
    fits = 100 if spread or seeded else 1
    large = Sentences(random, 4000 if fits > 1 else 40000)
    shifts = [(gap + spread * random.normal(), seeded * random.normal()) for _ in range(fits)]
    return float(np.mean([measure.value(large.y, large.classified(*shift)) for shift in shifts]))


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "seeds"), [(5, 1), (3, 1), (5, 3)])
def test_intervals_of_scores_gains_and_selectivity_cover_the_truth(draws: int, seeds: int) -> None:
    seeded = SEEDED * (seeds > 1)
    task = {name: truth(m, TASK, 0.0, seeded) for name, m in MEASURES.items()}
    control = {name: truth(m, CONTROL, DRAWN, seeded) for name, m in MEASURES.items()}
    base = {"accuracy": 0.5, "log_loss": 1.0}  # of a probe that says one class at even odds
    random = np.random.default_rng(100 * draws + seeds)
    hits: dict[tuple[str, str], int] = {}
    for study in range(STUDIES):
        words = Sentences(random)
        fits = [words.classified(TASK, seeded * random.normal()) for _ in range(seeds)]
        labels = [random.integers(0, 2, words.n) for _ in range(draws)]
        gaps = CONTROL + DRAWN * random.normal(size=draws)
        drawn = [
            [words.classified(gap, seeded * random.normal(), y) for _ in range(seeds)]
            for gap, y in zip(gaps, labels, strict=True)
        ]
        even = Prediction(np.zeros(words.n, np.int64), np.full((words.n, 2), np.log(0.5)))
        for name, measure in MEASURES.items():
            sign = 1 if measure.higher_is_better else -1
            ours = scored(measure, words.y, fits, words.groups)
            found = {"score": (replicates(ours[None], clusters=S, seed=study), task[name])}
            if name in base:
                theirs = scored(measure, words.y, [even], words.groups)
                better = {"clusters": S, "higher_is_better": measure.higher_is_better, "seed": study}
                found["gain"] = gained(ours, theirs, **better), sign * (task[name] - base[name])
                others = np.stack(
                    [scored(measure, y, of_draw, words.groups) for y, of_draw in zip(labels, drawn, strict=True)]
                )
                found["selectivity"] = gained(ours, others, **better), sign * (task[name] - control[name])
            for what, (sampled, true) in found.items():
                low, high = sampled.interval
                hits[name, what] = hits.get((name, what), 0) + (low <= true <= high)
    covered = {" ".join(key): count / STUDIES for key, count in hits.items()}
    print(draws, seeds, covered)
    assert all(0.92 <= share <= 0.98 for share in covered.values()), covered


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_r2_cover_the_truth(seeds: int) -> None:
    random, hits, seeded = np.random.default_rng(seeds), 0, 0.05 * (seeds > 1)

    def study(sentences: int, fits: int) -> tuple[Sentences, NDArray[Any], list[Prediction]]:
        words = Sentences(random, sentences)
        target = words.x + random.normal(size=words.n)
        return words, target, [Prediction((0.8 + seeded * random.normal()) * words.x) for _ in range(fits)]

    _, target, fits = study(20000, 300)
    true = float(np.mean([R2().value(target, fit) for fit in fits]))
    for number in range(STUDIES):
        words, target, fits = study(S, seeds)
        low, high = replicates(scored(R2(), target, fits, words.groups)[None], clusters=S, seed=number).interval
        hits += low <= true <= high
    print(seeds, hits / STUDIES)
    assert 0.92 <= hits / STUDIES <= 0.98
