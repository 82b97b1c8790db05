"""Judges circuits in words, from the metric of each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probing.circuits.measuring import ALIKE, LEAST_GROUPS, Floats, Scale
from probing.results.circuit import (
    BELOW,
    CLOSER,
    EXCEEDS,
    INCONCLUSIVE,
    MATERIAL,
    NECESSARY,
    NO_CLOSER,
    NOT_NECESSARY,
    NOT_SUFFICIENT,
    SUFFICIENT,
    TOGETHER,
    Estimated,
    Judged,
)
from probing.statistics.bootstrap import Clusters, detectable, unvaried_p
from probing.statistics.multiplicity import holm
from probing.use.inference import Estimate, max_t

LEVEL = 0.05
MANY_GROUPS = 30  # at most a tenth of groups is then of a kind that was not seen
LEAST_RANDOM = 39  # different random circuits
LEAST_RIGHT = 0.75  # share of pairs on which a model does the task
_MOST_NAMED = 5


def written(value: float) -> str:
    """Return a share with three decimals; what rounds to 0 has no sign."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def listed(parts: Sequence[str], between: str = ", ") -> str:
    """Return the first five of some phrases, and how many more there are."""
    more = len(parts) - _MOST_NAMED
    return between.join(parts[:_MOST_NAMED]) + (f"{between}and {more} more" if more > 0 else "")


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


def judge_random(few: Scale, values: Floats, random: Floats, different: int) -> Judged:
    """Return whether the f of a circuit is closer to 1 than those of random circuits with as many edges at every node
    `(K,)`, measured on the same pairs: whether |1 - f| is below the 2.5 % point of theirs. A random circuit that keeps
    more than the model is as far from it as one that keeps less. Fewer than 39 different ones have no such point: the
    best of 39 and one more is the best by chance in 2.5 % of cases.
    """
    share, bound = float(few.samples(values)[0][0]), float(np.quantile(np.abs(1 - random), 0.025))
    if different < LEAST_RANDOM:
        against = f"{LEAST_RANDOM} different random circuits or more; among {len(random)} there were {different}"
        return Judged("beside random circuits", INCONCLUSIVE, Estimated(share), None, against)
    is_closer = abs(1 - share) < bound - ALIKE
    word, other = (CLOSER, f"of {bound:.3f} or more") if is_closer else (NO_CLOSER, f"below {bound:.3f}")
    alike = "" if different == len(random) else f" ({different} different ones)"
    against = f"a distance |1 − f| {other}, the 2.5 % point of {len(random)} random circuits{alike}"
    return Judged("beside random circuits", word, Estimated(share), None, against)


def range_of(values: Floats | None) -> tuple[float | None, float | None]:
    """Return the range of 95 % of values; None of none."""
    return (None, None) if values is None else (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975)))


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
        found.append(PartVerdict(scale.bounded(one), above, smallest, word))
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
    return Judged(TOGETHER, words[verdict.word], verdict.removal, verdict.detectable, step)


def doubts_of(scale: Scale, words: Sequence[Judged], notes: Mapping[str, Any]) -> list[str]:
    """Return sentences on what weakens a circuit of these pairs."""
    found = []
    right = float((scale.full > 0).mean())
    if right < LEAST_RIGHT:
        found.append(f"The model prefers the answer on {right:.0%} of the test pairs only: it hardly does the task.")
    if "size_rule" in notes:
        found.append(
            "No circuit among these edges keeps the metric on discovery within ε/2; that of all edges with an effect "
            "of δ or more is judged."
        )
    found += _few_groups(scale.clusters)
    exchanges = notes.get("exchanges", LEAST_GROUPS)
    if exchanges < LEAST_GROUPS:
        which = "the same tokens" if exchanges == 1 else f"one of {exchanges} sets of tokens"
        found.append(
            f"Every test pair exchanges {which}, whatever surrounds them: that the circuit does the same with others "
            "is not shown."
        )
    if any(one.word == NO_CLOSER for one in words):
        found.append(f"The circuit is {NO_CLOSER}: what it keeps says nothing for these edges.")
    return [*found, *_given_doubts(notes, len(scale.full))]


def _few_groups(clusters: Clusters) -> list[str]:
    """Return a sentence on groups that are few, or few of which carry the metric's fall."""
    if clusters.effective >= MANY_GROUPS:
        return []
    count, all_of, unseen = round(clusters.effective), clusters.count, 1 - LEVEL ** (1 / clusters.effective)
    weigh = "" if count == all_of else f", which weigh as {count} alike: the metric falls more on some than on others"
    return [
        f"All words rest on {all_of} groups of test pairs{weigh}. An effect that only a few of the groups carry would "
        f"not be seen: up to {unseen:.0%} of all groups may be of a kind that is not among these."
    ]


def _given_doubts(notes: Mapping[str, Any], tests: int) -> list[str]:
    """Return a sentence on a given circuit if it may have been found on the pairs that it is measured on."""
    given, shared = notes.get("given"), notes.get("test_pairs_of_discovery")
    if given is None or shared == 0:
        return []
    if shared is None:
        return [
            f"{given} does not say which pairs its circuit was found on: some or all of the {tests} test pairs may be "
            "among them, and what was chosen on a pair looks better there. Judge it on pairs that were not at hand "
            "when it was found."
        ]
    return [
        f"{shared} of the {tests} test pairs are among those that the circuit of {given} was found on: what was chosen "
        "on a pair looks better there. Judge it on other pairs."
    ]
