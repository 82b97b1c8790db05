"""Judges circuits in words, from the metric of each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probing.circuits.measuring import ALIKE, Floats, Scale
from probing.results.circuit import (
    ABOVE_RANDOM,
    BELOW,
    EXCEEDS,
    INCONCLUSIVE,
    MATERIAL,
    NECESSARY,
    NOT_ABOVE_RANDOM,
    NOT_NECESSARY,
    NOT_SUFFICIENT,
    SUFFICIENT,
    Estimated,
    Judged,
)
from probing.statistics.bootstrap import detectable, unvaried_p
from probing.statistics.multiplicity import holm
from probing.use.inference import Estimate, max_t

LEVEL = 0.05
MANY_GROUPS = 30  # at most a tenth of groups is then of a kind that was not seen
LEAST_RIGHT = 0.75  # share of pairs on which a model does the task


def judge_sufficient(scale: Scale, values: Floats, epsilon: float) -> Judged:
    """Return whether a circuit is sufficient: the 95 % interval of its f lies between 1 − ε and 1 + ε. One that keeps
    more than 1 + ε leaves out what works against the answer.
    """
    found, error = scale.share(values), scale.estimates(values - scale.corrupted)[0].error
    assert found.low is not None and found.high is not None  # `share` gives both
    word = INCONCLUSIVE
    if found.low > 1 - epsilon and found.high < 1 + epsilon:
        word = SUFFICIENT
    elif found.low > 1 + epsilon:
        word = EXCEEDS
    elif found.high < 1 - epsilon:
        word = NOT_SUFFICIENT
    smallest = _smallest(scale, found, error)
    against = {
        SUFFICIENT: f"a share below {1 - epsilon:.2f} (or above {1 + epsilon:.2f}) on other pairs of these templates",
        EXCEEDS: f"a share of at most {1 + epsilon:.2f} on other pairs",
        NOT_SUFFICIENT: f"a share above {1 - epsilon:.2f} on other pairs",
    }
    return Judged("sufficient", word, found, smallest, against.get(word, "more pairs, which would decide it"))


def judge_necessary(scale: Scale, rest: Floats, epsilon: float) -> Judged:
    """Return whether a circuit is necessary: without it the rest keeps less than ε (the upper end of the 90 % interval,
    a one-sided test at 5 %).
    """
    found, narrow = scale.share(rest), scale.share(rest, level=0.90)
    error = scale.estimates(rest - scale.corrupted)[0].error
    assert narrow.high is not None and found.low is not None  # `share` gives both
    word = NECESSARY if narrow.high < epsilon else NOT_NECESSARY if found.low > epsilon else INCONCLUSIVE
    against = {
        NECESSARY: f"a rest that keeps {epsilon:.2f} or more on other pairs",
        NOT_NECESSARY: f"a rest that keeps less than {epsilon:.2f} on other pairs",
    }
    smallest = _smallest(scale, found, error)
    return Judged("necessary", word, found, smallest, against.get(word, "more pairs, which would decide it"))


def _smallest(scale: Scale, share: Estimated, error: float) -> float:
    """Return the smallest difference from a bound that would have been shown."""
    low, high = scale.unvaried(share.value)
    return (
        max(low - share.value, high - share.value, share.value - low)
        if 2 * error <= ALIKE
        else detectable(error, scale.clusters.df)
    )


def judge_random(few: Scale, values: Floats, high: float, count: int) -> Judged:
    """Return whether a circuit keeps more than random circuits with as many edges at every node, measured on the same
    pairs: whether its f is above their 97.5 % point.
    """
    share, side = float(few.samples(values)[0][0]), f"the 97.5 % point, {high:.3f}, of {count} random circuits"
    word, other = (ABOVE_RANDOM, "at most") if share > high else (NOT_ABOVE_RANDOM, "above")
    return Judged("beside random circuits", word, Estimated(share), None, f"a share {other} {side}")


@dataclass(frozen=True)
class PartVerdict:
    """Holds the word on one edge of a circuit; attributes as in `CircuitPart`."""

    removal: Estimated
    p_adjusted: float
    detectable: float
    word: str


def judge_parts(scale: Scale, falls: Floats, delta: float) -> list[PartVerdict]:
    """Return a word on each edge (or node) of a circuit, from the falls of the metric without it, `(K, n)`.

    It is material if |fall| is above δ, by max-T over all of them at 5 %; below δ if two one-sided tests, adjusted by
    Holm, place it between −δ and δ; else inconclusive. Where all groups agree on a fall, p is the probability that none
    of them is one of the others that would be needed (`unvaried_p`).
    """
    known = scale.estimates(falls)
    is_alike = [2 * e.error <= ALIKE for e in known]
    beyond = [Estimate(max(0.0, abs(e.value) - delta), e.error, e.df, e.by_group) for e in known]
    p = [
        1.0 if b.value == 0 else q
        for b, q in zip(beyond, max_t(beyond, [True] * len(beyond), seed=scale.seed), strict=True)
    ]
    p = [
        max(q, min(1.0, len(known) * _alike_p(scale, e.value, delta))) if alike else q
        for q, e, alike in zip(p, known, is_alike, strict=True)
    ]
    inside = holm(
        [
            _alike_p(scale, e.value, delta, is_below=True) if alike else e.equivalence_p(delta)
            for e, alike in zip(known, is_alike, strict=True)
        ]
    )
    found = []
    for one, above, below, alike in zip(known, p, inside, is_alike, strict=True):
        word = MATERIAL if above <= LEVEL else BELOW if below <= LEVEL else INCONCLUSIVE
        smallest = detectable(one.error, one.df, margin=delta, alpha=LEVEL / 2 / len(known))
        if alike:
            smallest = delta * (LEVEL / len(known)) ** (-1 / scale.clusters.effective)
        bounds = scale.unvaried(one.value) if alike else one.interval()
        found.append(PartVerdict(Estimated(one.value, *bounds), above, smallest, word))
    return found


def _alike_p(scale: Scale, value: float, delta: float, *, is_below: bool = False) -> float:
    """Return the p value of a removal that is the same in all groups: that it is above δ, or below it."""
    size, count = abs(value), scale.clusters.effective
    if is_below:
        return unvaried_p(-size, count, margin=-delta, least=-max(1.0, size))
    return unvaried_p(size, count, margin=delta, least=0.0)


def redundant(scale: Scale, without: Floats, delta: float) -> Judged:
    """Return what the edges whose removal changes the metric by less than δ on discovery do together, from the fall
    `(n,)` of the circuit's metric on test without all of them: material together, although none is alone, where one
    does what another does.
    """
    verdict = judge_parts(scale, without[None], delta)[0]
    words = {MATERIAL: "material together", BELOW: "below δ together", INCONCLUSIVE: INCONCLUSIVE}
    step = "a fall of the metric below δ (or above it) without all of them, on other pairs"
    return Judged("the others together", words[verdict.word], verdict.removal, verdict.detectable, step)


def doubts_of(scale: Scale, words: Sequence[Judged], notes: Mapping[str, Any]) -> list[str]:
    """Return sentences on what weakens a circuit of these pairs."""
    found = []
    right, count = float((scale.full > 0).mean()), scale.clusters.count
    if right < LEAST_RIGHT:
        found.append(f"The model prefers the answer on {right:.0%} of the test pairs only: it hardly does the task.")
    if "size_rule" in notes:
        found.append(
            "No circuit among these edges keeps the metric on discovery within ε/2; that of all edges with an effect "
            "of δ or more is judged."
        )
    if count < MANY_GROUPS:
        found.append(
            f"All words rest on {count} groups of test pairs: an effect that only a few of the groups carry would not "
            f"be seen. Up to {1 - LEVEL ** (1 / count):.0%} of all groups may be of a kind that is not among {count}."
        )
    if any(one.word == NOT_ABOVE_RANDOM for one in words):
        found.append(f"The circuit is {NOT_ABOVE_RANDOM}: what it keeps says nothing for these edges.")
    return found
