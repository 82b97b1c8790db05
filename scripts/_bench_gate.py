"""The gate of a verdict on made-up states: how often it lets a readable property pass, and labels at random.

Rows are 400 held-out rows of two even classes (fits have two thirds of them), in N/D from 0.2 to 20. States are noise
with ten strong directions; signals are one direction, of the strength at which linear probes reach an accuracy.

    python scripts/_bench_gate.py [--short]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta

from probing.errors import ProbingError
from probing.use.decoding import Decoded, decoded
from probing.use.discriminant import FoldStates, linear_predictions
from probing.use.experiment import FOLDS, Experiment, plan

ROWS = 400
RATIOS = (0.2, 0.5, 1, 2, 5, 20)
ACCURACIES = (0.55, 0.6, 0.65, 0.75, 0.9, 1.0)
EXCESS = 0.1  # of accuracy over the prior, from which on the power is promised
STRENGTHS = np.array([0.0, 0.5, 0.8, 1.1, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0])

Sample = tuple[Experiment, FoldStates]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: `power` or `false passes`.
        labels: how they were drawn.
        ratio: rows over coordinates.
        accuracy, prior: means over seeds, of the better probe.
        passed: seeds that passed.
        seeds: that could be planned.
        clear, clear_passed: seeds whose own held-out accuracy exceeds the prior by 0.1, and those of them that passed.
        contradictions: seeds that failed although the interval of the accuracy lies above the prior.
    """

    what: str
    labels: str
    ratio: float
    accuracy: float
    prior: float
    passed: int
    seeds: int
    clear: int
    clear_passed: int
    contradictions: int

    @property
    def interval(self) -> tuple[float, float]:
        """Of the rate of passes, 95 % (Clopper and Pearson)."""
        x, n = self.passed, self.seeds
        low = float(beta.ppf(0.025, x, n - x + 1)) if x else 0.0
        return low, float(beta.ppf(0.975, x + 1, n - x)) if x < n else 1.0

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.what:<13} {self.labels:<26} {self.ratio:5.1f} {self.accuracy:8.3f} {self.prior:6.3f} "
            f"{self.passed / max(1, self.seeds):7.3f} [{low:.3f}, {high:.3f}] {self.seeds:5d} "
            f"{self.clear_passed:4d} of {self.clear:<4d} {self.contradictions:3d}"
        )


HEADER = (
    f"{'':<13} {'labels':<26} {'N/D':>5} {'accuracy':>8} {'prior':>6} {'passed':>7} {'95 %':<14} {'seeds':>6} "
    f"{'clear':>12} contradictions"
)


def run(short: bool = False) -> list[Row]:
    """All lines, printed as they are made: 200 seeds each, or 20."""
    torch.set_num_threads(1)
    seeds, rows = 20 if short else 200, []
    print(HEADER, flush=True)
    for ratio in RATIOS:
        strengths = strengths_for(ratio, 3 if short else 8)
        for accuracy, strength in zip(ACCURACIES, strengths, strict=True):
            rows.append(
                measured(
                    "power",
                    f"two classes, to {accuracy:.2f}",
                    ratio,
                    seeds,
                    lambda seed, r=ratio, s=strength: signal(seed, r, s),
                )
            )
            print(rows[-1], flush=True)
    for name, ratios, draw in NULLS:
        for ratio in ratios:
            rows.append(measured("false passes", name, ratio, seeds, lambda seed, r=ratio, d=draw: d(seed, r)))
            print(rows[-1], flush=True)
    return rows


def measured(what: str, labels: str, ratio: float, seeds: int, draw: Callable[[int], Sample]) -> Row:
    """One line: the gate on as many samples as can be planned."""
    found: list[Decoded] = []
    for seed in range(seeds):
        try:
            e, states = draw(seed)
        except ProbingError:
            continue  # too few groups of a class in a fold
        found.append(decoded(e, states, seed=seed))
    best = [one.better for one in found]
    clear = [one.accuracy >= one.prior + EXCESS for one in best]
    return Row(
        what,
        labels,
        ratio,
        float(np.mean([b.accuracy for b in best])),
        float(np.mean([b.prior for b in best])),
        sum(one.passes for one in found),
        len(found),
        sum(clear),
        sum(one.passes for one, c in zip(found, clear, strict=True) if c),
        sum(not one.passes and b.accuracy_low > b.prior for one, b in zip(found, best, strict=True)),
    )


def strengths_for(ratio: float, seeds: int) -> list[float]:
    """By interpolation, the strengths at which linear probes reach the accuracies on average."""
    reached = []
    for strength in STRENGTHS:
        samples = [signal(10_000 + seed, ratio, float(strength)) for seed in range(seeds)]
        reached.append(np.mean([linear_accuracy(*sample) for sample in samples]))
    rising = np.maximum.accumulate(reached) + 1e-6 * np.arange(len(reached))
    return [float(np.interp(a, rising, STRENGTHS)) if a < 1 else 3 * float(STRENGTHS[-1]) for a in ACCURACIES]


def linear_accuracy(e: Experiment, states: FoldStates) -> float:
    """Held out, of the calibrated linear reader."""
    said = linear_predictions(e, states)
    return float(np.mean([np.mean(said[k].probabilities.argmax(1) == e.z[e.fold(k)]) for k in range(FOLDS)]))


def noise(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """`(n, D)`: unit noise and ten directions of three times its size in all."""
    few = min(10, width)
    return rng.normal(size=(n, width)) + 3 / np.sqrt(few) * rng.normal(size=(n, few)) @ rng.normal(size=(few, width))


def planned(z: np.ndarray, h: np.ndarray, groups: np.ndarray, n_classes: int, seed: int) -> Sample:
    """An experiment and its states."""
    e = plan(z, n_classes=n_classes, groups=groups, seed=seed)
    return e, FoldStates.of(e, h[e.rows])


def signal(seed: int, ratio: float, strength: float) -> Sample:
    """Two even classes that differ along one direction."""
    rng = np.random.default_rng(seed)
    width, z = round(ROWS / ratio), rng.permutation(np.arange(ROWS) % 2)
    direction = rng.normal(size=width)
    h = noise(rng, ROWS, width) + strength * np.outer(z - 0.5, direction / np.linalg.norm(direction))
    return planned(z, h, np.arange(ROWS), 2, seed)


def by_row(n_classes: int, *, rare: float = 0.0, even: bool = False) -> Callable[[int, float], Sample]:
    """Labels drawn for every row; 0 classes: real values."""

    def draw(seed: int, ratio: float) -> Sample:
        rng = np.random.default_rng(seed)
        n = 3 * ROWS if rare else ROWS
        z = rng.integers(0, n_classes, n) if n_classes else rng.normal(size=n)
        if even:
            z = rng.permutation(np.arange(n) % n_classes)
        if rare:
            z = (rng.random(n) < rare).astype(np.int64)
        return planned(z, noise(rng, n, round(n / ratio)), np.arange(n), n_classes, seed)

    return draw


def by_document(n_classes: int, *, zipf: bool) -> Callable[[int, float], Sample]:
    """Labels drawn for documents, whose rows share much of their states: 600 rows, 60 documents (120 of 4 classes)."""

    def draw(seed: int, ratio: float) -> Sample:
        rng = np.random.default_rng(seed)
        n, documents = (600, 60) if n_classes == 2 else (1200, 120)
        shares = 1 / np.arange(1, documents + 1) if zipf else np.ones(documents)
        groups = np.repeat(np.arange(documents), np.maximum(1, np.round(shares / shares.sum() * n)).astype(np.int64))
        width, z = round(len(groups) / ratio), rng.integers(0, n_classes, documents)[groups]
        h = 0.6 * noise(rng, len(groups), width) + 0.8 * noise(rng, documents, width)[groups]
        return planned(z, h, groups, n_classes, seed)

    return draw


FEW = (0.5, 5)
NULLS = (
    ("two, evenly, by row", RATIOS, by_row(2, even=True)),
    ("two, by row", FEW, by_row(2)),
    ("four, by row", FEW, by_row(4)),
    ("one of 5 %, by row", FEW, by_row(2, rare=0.05)),
    ("real, by row", FEW, by_row(0)),
    ("two, by even documents", FEW, by_document(2, zipf=False)),
    ("two, by Zipf documents", RATIOS, by_document(2, zipf=True)),
    ("four, by even documents", FEW, by_document(4, zipf=False)),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="20 seeds instead of 200")
    run(parser.parse_args().short)
