"""Circuits planted by hand, against an oracle that intervenes on one edge at a time in plain Python."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from probing.circuits import circuit
from probing.circuits.graph import Graph
from probing.errors import DegenerateDesign
from probing.results.circuit import (
    BELOW,
    CLOSER,
    EXCEEDS,
    MATERIAL,
    NECESSARY,
    NO_CLOSER,
    NOT_SUFFICIENT,
    SUFFICIENT,
    TOGETHER,
    CircuitResult,
)
from tests.samples.circuit_samples import (
    CANCELLING,
    NORMED,
    PLANS,
    REDUNDANT,
    SHARED,
    WIDTH,
    Plan,
    Planted,
    embedded,
    planted_pairs,
)

DELTA = 0.05


class Oracle:
    """Computes a plan for one prompt, node by node; one edge may carry what its sender wrote on another prompt."""

    def __init__(self, plan: Plan, prompt: list[int], other: Oracle | None = None, edge: str = "") -> None:
        self.plan, self.other, self.edge = plan, other, edge
        self.states = [embedded(token) for token in prompt]
        self.written: dict[str, list[list[float]]] = {"input": self.states}
        for layer, heads in enumerate(plan.heads):
            before = list(self.written)
            new = {f"a{layer}.h{h}": self._head(layer, h, before) for h in range(len(heads))}
            self.written |= new
            read = self._read(f"m{layer}", list(self.written))
            self.written[f"m{layer}"] = [[float(v) for v in plan.mlps[layer](x)] for x in read]
        last = self._read("logits", list(self.written))[-1]
        scale = math.sqrt(sum(v * v for v in last) / WIDTH + 0.1) if plan.has_norm else 1.0
        self.metric = sum(a * b for a, b in zip(last, plan.reads, strict=True)) / scale

    def _read(self, reader: str, senders: list[str]) -> list[list[float]]:
        total = [[0.0] * WIDTH for _ in self.states]
        for sender in senders:
            is_cut = self.other is not None and self.edge == f"{sender}->{reader}"
            source = self.other.written if is_cut and self.other is not None else self.written
            total = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(total, source[sender], strict=True)]
        return total

    def _head(self, layer: int, number: int, senders: list[str]) -> list[list[float]]:
        head = self.plan.heads[layer][number]
        query, value = (self._read(f"a{layer}.h{number}<{kind}>", senders) for kind in "qv")
        moved = sum(a * b for a, b in zip(value[0], head.reads, strict=True))
        if head.asks is not None:
            moved /= 1.0 + math.exp(-sum(a * b for a, b in zip(query[-1], head.asks, strict=True)))
        return [[0.0] * WIDTH, [0.0] * WIDTH, [moved * w for w in head.writes]]


def true_effects(plan: Plan) -> dict[str, float]:
    """Fall of the metric without each edge, as a share of the fall from clean to corrupted prompts."""
    pairs = planted_pairs()
    graph = Graph(Planted(plan).layers)
    total, falls = 0.0, dict.fromkeys(graph.names(graph.allowed), 0.0)
    for clean, corrupted in zip(pairs.clean, pairs.corrupted, strict=True):
        other, own = Oracle(plan, list(corrupted)), Oracle(plan, list(clean))
        total += own.metric - other.metric
        for edge in falls:
            falls[edge] += own.metric - Oracle(plan, list(clean), other, edge).metric
    return {edge: fall / total for edge, fall in falls.items()}


@pytest.fixture(scope="module", params=PLANS, ids=lambda plan: plan.name)
def planted(request: pytest.FixtureRequest) -> tuple[Plan, CircuitResult, dict[str, float]]:
    plan: Plan = request.param
    result = circuit(
        Planted(plan), planted_pairs(), properties=["sign"], random_circuits=20, delta=DELTA, progress=False
    )
    return plan, result, true_effects(plan)


def test_effects_are_those_of_the_oracle(planted: tuple[Plan, CircuitResult, dict[str, float]]) -> None:
    _, result, truth = planted
    found = {part.name: part.effect for part in result.parts}
    assert set(found) == set(truth)
    large = {edge for edge, effect in truth.items() if abs(effect) > 1e-9}
    assert {edge for edge, effect in found.items() if abs(effect) > 1e-5} == large
    for edge in truth:  # on half of the pairs
        assert found[edge] == pytest.approx(truth[edge], abs=0.1)


def test_words_name_the_planted_edges(planted: tuple[Plan, CircuitResult, dict[str, float]]) -> None:
    plan, result, truth = planted
    certain = {edge for edge, effect in truth.items() if abs(effect) > 2 * DELTA}
    if plan is not REDUNDANT:
        assert set(result.material) == certain
        assert certain <= set(result.edges)
        assert result.word("sufficient").word == SUFFICIENT
    assert result.scope.startswith("of these prompts")


def test_a_path_that_cancels_is_part_of_the_circuit() -> None:
    """By sign alone, the circuit lacks what works against the answer, and keeps more than the model."""
    result = circuit(Planted(CANCELLING), planted_pairs(), random_circuits=0, progress=False)
    assert {"m0->logits", "m0->m1", "m1->logits"} <= set(result.material)
    assert "a0.h0->m0" in result.edges  # its removal takes both paths at once, and shows nothing
    signed = max(one.faithfulness.value for one in result.sizes if one.by == "signed")
    assert signed == pytest.approx(1.6, abs=0.05)
    assert result.word("sufficient").word not in (EXCEEDS,)


def test_a_redundant_pair_is_material_only_together() -> None:
    """Either head suffices, so that no removal from the whole model shows anything."""
    result = circuit(Planted(REDUNDANT), planted_pairs(), random_circuits=0, progress=False)
    pair = {"a0.h0->m1", "a0.h1->m1"}
    effects = {part.name: part.effect for part in result.parts}
    assert all(effects[edge] == 0 for edge in pair)
    assert len(pair & set(result.material)) == 1  # in a circuit that has one of them, it is needed
    both = circuit(Planted(REDUNDANT), planted_pairs(), size=46, random_circuits=0, progress=False)
    assert pair <= set(both.edges) and not pair & set(both.material)
    assert both.word(TOGETHER).word == "material together"


def test_a_norm_is_part_of_what_the_logits_read() -> None:
    """a0.h1 writes nothing that is read, but its size divides the rest."""
    result = circuit(Planted(NORMED), planted_pairs(), random_circuits=0, progress=False)
    assert "a0.h0->a1.h1<q>" in result.material
    assert result.word("necessary").word == NECESSARY


def test_a_property_flows_along_the_planted_edges() -> None:
    """In every pair the sign differs, so the edges that carry it carry what their removal takes."""
    result = circuit(Planted(CANCELLING), planted_pairs(), properties=["sign"], random_circuits=0, progress=False)
    for part in result.parts:
        if part.in_circuit and part.removal is not None:
            assert part.carries["sign"].value == pytest.approx(part.removal.value, abs=0.02)
            assert abs(part.carries["sign (shuffled)"].value) < 0.5 * abs(part.removal.value) + 0.05
        for flow in part.carries.values():
            assert flow.low is not None and flow.high is not None and flow.high > flow.low


def test_a_circuit_among_too_few_nodes_is_called_so() -> None:
    """Without the other head, nothing among the edges left keeps the metric; without m1 nothing is left."""
    result = circuit(Planted(SHARED), planted_pairs(), nodes=1, random_circuits=0, progress=False)
    assert result.facts["candidates"] < result.facts["all_edges"]
    assert result.word("sufficient").share.value == pytest.approx(0.6)
    assert result.word("sufficient").word == NOT_SUFFICIENT
    assert any("No circuit among these edges" in doubt for doubt in result.doubts)
    with pytest.raises(DegenerateDesign, match="no path"):
        circuit(Planted(REDUNDANT), planted_pairs(), nodes=1, random_circuits=0, progress=False)


def test_nodes_of_a_circuit() -> None:
    result = circuit(Planted(CANCELLING), planted_pairs(), level="node", random_circuits=0, progress=False)
    assert set(result.material) == {"a0.h0", "m1"}
    assert {part.name for part in result.parts if part.in_circuit} >= {"a0.h0", "m0", "m1"}


def test_random_pairs_give_no_material_edge_on_random_noise() -> None:
    """Metrics that do not depend on the edges of a circuit are never called so: the share of false words is bounded."""
    random = np.random.default_rng(0)
    from probing.circuits.judging import judge_parts
    from probing.circuits.measuring import Scale

    wrong = 0
    for run in range(100):
        full = 1.0 + 0.3 * random.standard_normal(40)
        scale = Scale(full, full - 1.0, np.arange(40) // 2, run)
        falls = DELTA + 0.1 * random.standard_normal((10, 40))  # every one is δ, the worst case
        wrong += any(one.word == MATERIAL for one in judge_parts(scale, falls, DELTA))
    assert wrong <= 10  # the 99 % point of the binomial at 5 % of 100


@pytest.mark.parametrize("groups", [8, 20])
def test_a_few_groups_that_carry_all_are_reckoned_with(groups: int) -> None:
    """In 10 % of groups the circuit keeps nothing: no word says more than it may, although in four of ten tests of
    eight groups none of them is seen.
    """
    from probing.circuits.judging import judge_necessary, judge_parts, judge_sufficient
    from probing.circuits.measuring import Scale

    random, wrong = np.random.default_rng(1), Counter[str]()
    for run in range(60):
        is_other = np.repeat(random.random(groups) < 0.1, 2)
        scale = Scale(np.ones(2 * groups), np.zeros(2 * groups), np.arange(2 * groups) // 2, run)
        share = judge_sufficient(scale, np.where(is_other, 0.0, 1.0), 0.1)
        assert share.share.low is not None and share.share.high is not None and share.share.high > share.share.low
        wrong[SUFFICIENT] += share.word == SUFFICIENT
        wrong[NECESSARY] += judge_necessary(scale, np.where(is_other, 1.0, 0.0), 0.1).word == NECESSARY
        wrong[BELOW] += judge_parts(scale, np.where(is_other, 1.0, 0.0)[None], DELTA)[0].word == BELOW
    assert max(wrong.values()) <= 8  # the 99 % point of the binomial at 5 % of 60


def test_alike_groups_are_enough_where_they_are_many() -> None:
    from probing.circuits.judging import judge_necessary, judge_parts, judge_sufficient
    from probing.circuits.measuring import Scale

    scale = Scale(np.ones(100), np.zeros(100), np.arange(100))
    assert judge_sufficient(scale, np.ones(100), 0.1).word == SUFFICIENT
    assert judge_necessary(scale, np.zeros(100), 0.1).word == NECESSARY
    assert [one.word for one in judge_parts(scale, np.zeros((1, 100)), DELTA)] == [BELOW]
    few = Scale(np.ones(8), np.zeros(8), np.arange(8))
    assert [one.word for one in judge_parts(few, np.ones((5, 8)), DELTA)] == [MATERIAL] * 5


def test_circuits_are_held_against_random_ones_of_their_size() -> None:
    from probing.circuits.judging import doubts_of, judge_random
    from probing.circuits.measuring import Scale

    scale = Scale(np.ones(40), np.zeros(40), np.arange(40))
    above, same = (judge_random(scale, np.full(40, f), np.full(60, 0.5), 39) for f in (0.51, 0.5))
    assert above.word == CLOSER and same.word == NO_CLOSER
    assert not doubts_of(scale, [above], {}) and NO_CLOSER in doubts_of(scale, [same], {})[0]


@pytest.mark.parametrize("off", [0.0, 0.1, 0.4])
def test_circuits_that_keep_too_much_are_as_far_as_those_that_keep_too_little(off: float) -> None:
    """What is compared is the distance from the model, and the same on either side."""
    from probing.circuits.judging import judge_random
    from probing.circuits.measuring import Scale

    scale, words = Scale(np.ones(40), np.zeros(40), np.arange(40)), []
    for random in (np.full(40, 1 + 0.3), np.full(40, 1 - 0.3), np.r_[np.full(20, 1.3), np.full(20, 0.7)]):
        words += [judge_random(scale, np.full(40, 1 + sign * off), random, 40).word for sign in (1, -1)]
    assert set(words) == {CLOSER if off < 0.3 else NO_CLOSER}


@pytest.mark.parametrize("off", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_no_interval_of_a_share_has_no_width(off: float) -> None:
    """Groups that all agree say nothing certain of those that were not seen, whichever share it is of."""
    from probing.circuits.judging import judge_parts
    from probing.circuits.measuring import Scale

    scale = Scale(np.ones(40), np.zeros(40), np.arange(40))
    shares = [scale.share(np.full(40, off)), judge_parts(scale, np.full((1, 40), off), DELTA)[0].removal]
    for one in [*shares, scale.bounded(scale.estimates(np.full(40, off))[0])]:
        assert one.low is not None and one.high is not None and one.high - one.low > 0.05
        assert (one.low, one.high) == pytest.approx(scale.unvaried(off))


def test_the_size_that_is_judged_has_a_row() -> None:
    result = circuit(Planted(CANCELLING), planted_pairs(), random_circuits=0, progress=False)
    assert result.sizes[0].by == "judged" and result.sizes[0].edges == len(result.edges)
    assert result.sizes[0].faithfulness == result.word("sufficient").share
