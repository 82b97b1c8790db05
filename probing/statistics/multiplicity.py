"""Corrections for multiple tests: adjusted p values, and the level that they leave to a single test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from probing.statistics.bootstrap import ALPHA

CORRECTIONS = ("holm", "bh")
Correction = Literal["holm", "bh"]


def level_after(p: Sequence[float], correction: Correction, *, alpha: float = ALPHA) -> float:
    """Return the level at which a single test of a family of n is decided after correction, given the p values of all.

    For Holm it is alpha / n, the level of the first step, which does not depend on other tests. For Benjamini-Hochberg
    it is alpha · k / n, with k the number of tests rejected (at least 1).
    """
    if not p:
        return alpha
    rejected = sum(q <= alpha for q in adjust(p, correction)) if correction == "bh" else 1
    return alpha * max(1, rejected) / len(p)


def adjust(p: Sequence[float], correction: Correction) -> list[float]:
    """Return p values adjusted by `holm` (family-wise error) or `bh` (false discovery rate)."""
    return holm(p) if correction == "holm" else benjamini_hochberg(p)


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down method, which controls the family-wise error under any dependence.

    References:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Return p values adjusted by the step-up method of Benjamini and Hochberg, which controls the expected share of
    false claims among all claims.

    It is valid for independent or positively dependent tests, as tests of sites on the same rows usually are. Its
    guarantee is weaker than Holm's: among twenty claims at 0.05, one is expected to be false.

    References:
        Benjamini and Hochberg 1995, Controlling the false discovery rate, §3.1.
    """
    order = sorted(range(len(p)), key=lambda i: p[i], reverse=True)
    adjusted, running = [0.0] * len(p), 1.0
    for rank, i in enumerate(order):
        running = min(running, p[i] * (len(p) / (len(p) - rank)))
        adjusted[i] = running
    return adjusted
