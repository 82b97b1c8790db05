"""p values and smallest detectable gains, adjusted over all tests on one store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from probing.results.probe import Gain, MeasureResult, ProbeResult
from probing.statistics.bootstrap import ALPHA, detectable
from probing.statistics.multiplicity import Correction, adjust, level_after


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
    return detectable(gain.error, gain.df, margin=gain.margin, alpha=level)


def _with_gains(found: MeasureResult, queue: Iterator[Gain]) -> MeasureResult:
    return replace(found, gains=tuple(next(queue) for _ in found.gains))


def _family(result: ProbeResult, found: MeasureResult) -> tuple[str, ...]:
    alone = "" if result.complete else result.task  # of a task that failed in part: no test of the others
    return str(result.provenance.get("store_id")), found.measure, found.split, alone
