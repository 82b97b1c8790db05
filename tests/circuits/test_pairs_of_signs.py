"""What holds pair by pair and not on average, groups that carry nothing, and random circuits that are the circuit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from probing.circuits import _random, circuit
from probing.circuits.checking import Options
from probing.circuits.doubting import _opposed
from probing.circuits.graph import Mask
from probing.circuits.judging import judge_necessary, judge_parts, judge_random, judge_sufficient
from probing.circuits.measuring import Scale
from probing.circuits.screening import agreement
from probing.circuits.searching import Search
from probing.circuits.traces import TokenPairs
from probing.results.circuit import CLOSER, INCONCLUSIVE, SUFFICIENT
from tests.circuits.test_doubting import doubts_with
from tests.circuits.test_planted import DELTA
from tests.samples.circuit_samples import (
    CANCELLING,
    IDLE,
    SHARED,
    Plan,
    Planted,
    PlantedHead,
    _axis,
    _nothing,
    planted_pairs,
)

ALIKE_GROUPS = Scale(np.ones(40), np.zeros(40), np.arange(40))
BOTH_SIGNS = Plan(  # a0.h0 brings the sign; m0 writes it times the last token's noise, whose sign differs between pairs
    "both signs",
    ((PlantedHead(_axis(0), _axis(2)), PlantedHead(_axis(5), _axis(3))),),
    (lambda x: [*_nothing(x)[:4], 3.0 * x[2] * (x[5] + 0.05), *_nothing(x)[5:]],),
    (0.0, 0.0, 1.0, 0.0, 1.0, 0.0),
)


def balanced_pairs(groups: int = 120) -> TokenPairs:
    """Groups of two pairs whose last tokens have opposite noise."""
    random = np.random.default_rng(4)
    digits = random.integers(0, 10, groups)
    last = np.column_stack([digits, 9 - digits]).ravel() * 20
    first = np.repeat(random.integers(0, 100, groups), 2) * 2
    middle = random.integers(0, 100, 2 * groups) * 2
    clean, corrupted = (np.column_stack([one, middle, last]).tolist() for one in (first + 1, first))
    return TokenPairs(clean, corrupted, np.zeros((2 * groups, 2), np.int64), np.arange(2 * groups) // 2)


def test_a_circuit_that_holds_on_average_only_is_called_so() -> None:
    """Without m0 the mean stays, and every pair has another metric: its effects have both signs and are left out."""
    result = circuit(Planted(BOTH_SIGNS), balanced_pairs(), random_circuits=0, progress=False)
    assert result.word("sufficient").word == SUFFICIENT and "m0->logits" not in result.edges
    (doubt,) = doubts_with(result, "on average only")
    assert "m0->logits (0." in doubt and "a0.h0->m0 (0." in doubt and "a0.h0->logits" not in doubt
    whole = circuit(Planted(BOTH_SIGNS), balanced_pairs(), size=11, random_circuits=0, progress=False)
    assert "m0->logits" in whole.edges and not doubts_with(whole, "on average only")


@pytest.mark.parametrize("seed", range(5))
def test_sets_that_cancel_are_those_that_do_so_pair_by_pair(seed: int) -> None:
    """Equal means tell nothing apart: 0 and 1 have the same; 2 and 3 take away what 1 writes."""
    random = np.random.default_rng(seed)
    one, other = (values / values.sum() for values in random.uniform(0.5, 1.5, (2, 40)))
    falls = {(0, 7): one, (1, 7): other, (2, 7): -other / 2, (3, 7): -other / 2}
    order = random.permutation(4)
    (found,) = _opposed({(int(k), 7): falls[int(k), 7] for k in order}, DELTA)
    assert sorted(found) == [(1, 7), (2, 7), (3, 7)]


@pytest.mark.parametrize("seed", range(5))
def test_effects_on_different_pairs_do_not_cancel(seed: int) -> None:
    is_first = np.random.default_rng(seed).permutation(40) < 20
    effect = np.full(40, 0.01)
    assert not _opposed({(0, 7): np.where(is_first, effect, 0.0), (1, 7): np.where(is_first, 0.0, -effect)}, DELTA)


TWINS = Plan(  # two heads write the sign alike, and a third takes one of them away
    "twins",
    ((PlantedHead(_axis(0), _axis(2)), PlantedHead(_axis(0), _axis(2)), PlantedHead(_axis(0), _axis(2, -1.0))),),
    (_nothing,),
    _axis(2),
)


def test_of_parts_that_do_the_same_none_is_said_to_be_the_one() -> None:
    result = circuit(Planted(TWINS), planted_pairs(), random_circuits=0, progress=False)
    found = doubts_with(result, "cancel:")
    assert len(found) == 2 and all("a0.h2->logits (−1.000)" in doubt for doubt in found)
    assert all("a0.h2->logits would cancel with others as well" in doubt for doubt in found)


@pytest.mark.parametrize("value", [1.0, 0.0, 0.97])
@pytest.mark.parametrize("others", [1, 31, 200])
def test_groups_without_a_fall_are_no_evidence(value: float, others: int) -> None:
    """What is said with pairs on which the corruption changes nothing is what is said without them."""
    falls = np.repeat([1.0, 0.0], [9, others])
    with_others, alone = (Scale(full, np.zeros(len(full)), np.arange(len(full))) for full in (falls, falls[:9]))
    for judge in (judge_sufficient, judge_necessary):
        assert judge(with_others, value * falls, 0.1) == judge(alone, value * falls[:9], 0.1)
    parts = [judge_parts(scale, value * scale.full[None], DELTA)[0] for scale in (with_others, alone)]
    assert (parts[0].word, parts[0].removal) == (parts[1].word, parts[1].removal)
    assert with_others.clusters.df == pytest.approx(alone.clusters.df)


@pytest.mark.parametrize("rising", [-1.0, -0.5, -0.1])
def test_groups_on_which_the_metric_rises_are_no_more_evidence(rising: float) -> None:
    """Of a population in which 8 % of groups are of another kind, 50 are drawn: f is .86 at most, not *sufficient*."""
    random, wrong, runs = np.random.default_rng(3), 0, 200
    for run in range(runs):
        kind = random.random(50)
        full = np.where((kind < 0.52) | (kind >= 0.92), 1.0, rising)
        kept = np.where(kind >= 0.92, 0.0, full)
        if full.sum() > 5:
            wrong += judge_sufficient(Scale(full, np.zeros(50), np.arange(50), run), kept, 0.1).word == SUFFICIENT
    assert wrong <= binom.ppf(0.999, runs, 0.025)
    alike = Scale(np.repeat([1.0, rising], [30, 20]), np.zeros(50), np.arange(50))
    assert alike.clusters.effective <= 30


def test_a_group_that_carries_all_is_one() -> None:
    full = np.array([1.0] * 39 + [1000.0])
    scale = Scale(full, np.zeros(40), np.arange(40))
    assert scale.clusters.effective < 1.1 and judge_sufficient(scale, full, 0.1).word != SUFFICIENT


def test_random_circuits_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw that is the circuit itself says nothing of it, and is left out."""
    options = Options("edge", "exact", "corrupted", None, None, 5, 0.1, None, 6, 16, 0)
    search = Search(Planted(SHARED), planted_pairs(), options, folder=None, progress=False)
    mine, other = (search.graph.mask([f"input->a0.h{h}<v>", f"a0.h{h}->logits"]) for h in (0, 1))
    drawn = iter([mine, other, mine, mine, other, other])

    def next_one(self: object, mask: Mask, random: object, *, within: Mask) -> Mask:
        return next(drawn)

    monkeypatch.setattr(type(search.graph), "rewired", next_one)
    values, different = _random(search, mine, "judged")
    assert values == pytest.approx([0.4] * 3) and different == 1
    drawn = iter([mine] * 6)
    assert _random(search, mine, "judged") == (None, 0)


@pytest.mark.parametrize(("draws", "different"), [(1, 1), (38, 38), (1000, 8), (39, 39), (200, 60)])
def test_few_random_circuits_decide_nothing(draws: int, different: int) -> None:
    """The best of k circuits is the best by chance in one of k cases, however often each was drawn."""
    judged = judge_random(ALIKE_GROUPS, np.ones(40), np.full(draws, 0.1), different)
    assert judged.word == (CLOSER if different >= 39 else INCONCLUSIVE) and str(different) in judged.overturned_by


def test_what_is_rounding_has_no_rank() -> None:
    random, exact = np.random.default_rng(0), np.zeros(100)
    exact[:3] = 0.5, 0.3, -0.2
    rough = exact + 1e-8 * random.standard_normal(100)
    found = agreement("eap", [str(k) for k in range(100)], rough, exact - 1e-8 * random.standard_normal(100), DELTA)
    assert found["rank_correlation_eap"] == pytest.approx(1.0)


STEP = Plan(  # m1 is a step that the mean of what it reads does not cross; a0.h1 writes half of the sign
    "step",
    ((PlantedHead(_axis(0), _axis(2)), PlantedHead(_axis(0), _axis(3, 0.5))), (IDLE, IDLE)),
    (_nothing, lambda x: [*_nothing(x)[:4], 2.0 * (x[2] > -0.5), *_nothing(x)[5:]]),
    (0.0, 0.0, 0.0, 1.0, 1.0, 0.0),
)


@pytest.mark.parametrize("by", ["mean", "corrupted"])
def test_by_mean_a_double_is_not_the_only_cause(by: str) -> None:
    """No double is planted: in the circuit m1 writes its mean, in the whole model the step of a mean."""
    result = circuit(Planted(STEP), planted_pairs(), by=by, random_circuits=0, progress=False)
    doubts = doubts_with(result, "outside the circuit")
    assert len(doubts) == (by == "mean") and all("or neither" in doubt for doubt in doubts)


def test_pairs_that_exchange_the_same_tokens_are_called_so() -> None:
    pairs = planted_pairs()
    assert not doubts_with(circuit(Planted(CANCELLING), pairs, random_circuits=0, progress=False), "exchanges")
    rest = [row[1:] for row in pairs.clean]
    for words in (1, 3):
        first = [2 * (k % words) for k in range(len(rest))]
        same = TokenPairs(
            [[a + 1, *b] for a, b in zip(first, rest, strict=True)],
            [[a, *b] for a, b in zip(first, rest, strict=True)],
            pairs.answers,
            pairs.groups,
        )
        result = circuit(Planted(CANCELLING), same, random_circuits=0, progress=False)
        (doubt,) = doubts_with(result, "exchanges")
        assert ("the same tokens" if words == 1 else "one of 3 sets of tokens") in doubt


TAKEN_AWAY = Plan(  # a0.h1 takes away what a0.h0 writes for m0 to copy; a0.h2 writes the sign for the logits
    "taken away",
    (
        (PlantedHead(_axis(0), _axis(2)), PlantedHead(_axis(0), _axis(2, -1.0)), PlantedHead(_axis(0), _axis(4))),
        (IDLE, IDLE, IDLE),
    ),
    (lambda x: [*_nothing(x)[:3], x[2], *_nothing(x)[4:]], _nothing),
    (0.0, 0.0, 0.0, 1.0, 1.0, 0.0),
)


def test_what_cancels_at_a_part_is_in_the_circuit_with_what_follows_it() -> None:
    """No removal shows what the part writes, for it writes nothing while both are there."""
    result = circuit(Planted(TAKEN_AWAY), planted_pairs(), random_circuits=0, progress=False)
    large = {part.name for part in result.parts if abs(part.effect or 0.0) >= DELTA}
    assert large <= set(result.edges) and "m0->logits" in result.edges and len(result.edges) == len(large) + 1
    (doubt,) = doubts_with(result, "cancel:")
    assert "a0.h0->m0" in doubt and "a0.h1->m0" in doubt and "a0.h2" not in doubt
