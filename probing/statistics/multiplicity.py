"""Corrections for many tests at once: adjusted p values, and the level at which one more of them would be decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from probing.statistics.bootstrap import ALPHA

CORRECTIONS = ("holm", "bh")
Correction = Literal["holm", "bh"]


def level_after(p: Sequence[float], correction: Correction, *, alpha: float = ALPHA) -> float:
    """Return the level at which one more of n tests would be decided, given the p of all.

    Holm: alpha / n, that of its first step, which needs no other test to succeed. Benjamini-Hochberg: alpha · k / n
    with k the tests that it rejects (at least 1).
    """
    if not p:
        return alpha
    rejected = sum(q <= alpha for q in adjust(p, correction)) if correction == "bh" else 1
    return alpha * max(1, rejected) / len(p)


def adjust(p: Sequence[float], correction: Correction) -> list[float]:
    """Return p adjusted by `holm` (family-wise error) or `bh` (false discovery rate)."""
    return holm(p) if correction == "holm" else benjamini_hochberg(p)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p by Holm's step-down method, which controls the family-wise error whatever the dependence.

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
    """Adjust p by the step-up method, which controls the expected share of false claims among all claims.

    Valid for independent or positively dependent tests, as those of sites on the same rows usually are. Weaker than
    Holm: among twenty claims at 0.05 one may be false.

    References:
        Benjamini and Hochberg 1995, Controlling the false discovery rate, §3.1.
    """
    order = sorted(range(len(p)), key=lambda i: p[i], reverse=True)
    adjusted, running = [0.0] * len(p), 1.0
    for rank, i in enumerate(order):
        running = min(running, p[i] * (len(p) / (len(p) - rank)))
        adjusted[i] = running
    return adjusted
