"""Nothing that is printed lies outside the range of its measure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import probing as pb
from probing.statistics.multiplicity import adjusted


@pytest.mark.parametrize("kind", ["classes", "real"])
@pytest.mark.parametrize("groups", [20, 40])
def test_intervals_and_detectable_differences_stay_within_the_measure(kind, groups):
    random, n = np.random.default_rng(0), 40
    X, y = random.normal(size=(n, 30)), random.normal(size=n)
    labels = y if kind == "real" else np.where(y > 0, "a", "b")
    results = pb.probe(X, labels, groups=np.arange(n) % groups, progress=False)
    for result in results:
        for found in result.measures:
            scores = [found.score, *(one.score for one in found.comparisons)]
            if found.measure in ("log_loss", "brier", "rmse"):
                assert all(score.low >= 0 for score in scores)
            if found.measure in ("accuracy", "r2", "spearman"):
                assert all(score.high <= 1 for score in scores)
            assert all(
                gain.detectable is None or gain.largest is None or gain.detectable <= gain.largest
                for gain in found.gains
            )
    sure = [
        replace(r, measures=tuple(replace(m, gains=tuple(replace(g, error=1e6) for g in m.gains)) for m in r.measures))
        for r in results
    ]
    for result in adjusted(sure):
        for found in result.measures:
            assert all(gain.detectable is None for gain in found.gains if gain.largest is not None)
