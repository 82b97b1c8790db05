"""Corrections for multiple tests: p values and smallest detectable gains, adjusted over all tests on one store, and the
level that is left to a single test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from probing.results.probe import CORRECTIONS, Correction, Gain, MeasureResult, ProbeResult
from probing.statistics.bootstrap import ALPHA, detectable, possible

__all__ = [
    "CORRECTIONS",
    "Correction",
    "adjust",
    "adjusted",
    "benjamini_hochberg",
    "correction_of",
    "holm",
    "level_after",
]


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


def correction_of(results: Iterable[ProbeResult]) -> Correction:
    """Return how the p values of these results are adjusted: the correction named in the first gain, or `holm`."""
    gains = (gain for result in results for found in result.measures for gain in found.gains)
    return next((gain.correction for gain in gains), "holm")


def adjusted(results: Iterable[ProbeResult], *, correction: Correction = "holm") -> list[ProbeResult]:
    """Return the results with p values adjusted over the sites, probes, baselines and tasks of a store, separately for
    each measure and split.

    Tasks of which a unit failed are adjusted separately from the others. The smallest detectable gain depends on the
    number of tests as well, and is recomputed.
    """
    listed = list(results)
    families: dict[tuple[str, ...], list[Gain]] = {}
    for result in listed:
        for found in result.measures:
            families.setdefault(_family(result, found), []).extend(found.gains)
    queues = {key: iter(_told(gains, correction)) for key, gains in families.items()}
    return [
        replace(result, measures=tuple(_with_gains(found, queues[_family(result, found)]) for found in result.measures))
        for result in listed
    ]


def _told(gains: Sequence[Gain], correction: Correction) -> list[Gain]:
    """Return the gains of one family with what depends on the family."""
    p = [gain.p for gain in gains]
    level = level_after(p, correction, alpha=ALPHA)
    return [
        replace(gain, p_adjusted=one, correction=correction, family=len(p), detectable=_detectable(gain, level))
        for gain, one in zip(gains, adjust(p, correction), strict=True)
    ]


def _detectable(gain: Gain, level: float) -> float | None:
    if gain.error is None or gain.df is None:
        return None
    return possible(detectable(gain.error, gain.df, margin=gain.margin, alpha=level), gain.largest)


def _with_gains(found: MeasureResult, queue: Iterator[Gain]) -> MeasureResult:
    return replace(found, gains=tuple(next(queue) for _ in found.gains))


def _family(result: ProbeResult, found: MeasureResult) -> tuple[str, ...]:
    alone = "" if result.complete else result.task  # of a task that failed in part: no test of the others
    return str(result.provenance.get("store_id")), found.measure, found.split, alone
