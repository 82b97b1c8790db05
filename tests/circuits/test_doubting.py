"""Doubts on planted circuits: what is said is so in the whole model, and nothing is said where nothing is planted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from probing.circuits import circuit
from probing.reporting.circuit_sections import methods
from probing.results.circuit import LIMITS, CircuitResult
from tests.circuits.test_planted import DELTA, true_effects
from tests.samples.circuit_samples import (
    CANCELLING,
    IDLE,
    NORMED,
    PLANS,
    REDUNDANT,
    SHARED,
    Plan,
    Planted,
    PlantedHead,
    _axis,
    _nothing,
    planted_pairs,
)


def doubts_with(result: CircuitResult, words: str) -> list[str]:
    return [doubt for doubt in result.doubts if words in doubt]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_removals_from_the_model_are_those_of_the_oracle(plan: Plan) -> None:
    result = circuit(Planted(plan), planted_pairs(), random_circuits=0, progress=False)
    truth, known = true_effects(plan), result.facts["removals_from_model"]
    assert set(known) == set(result.material) and known
    for name, share in known.items():
        assert share == pytest.approx(truth[name], abs=0.1)  # on the other half of the pairs


@pytest.mark.parametrize("level", ["edge", "node"])
def test_a_double_outside_the_circuit_is_named(level: str) -> None:
    """Either head suffices, and the circuit has one of them: it is material there, and the model does without it."""
    result = circuit(Planted(REDUNDANT), planted_pairs(), level=level, random_circuits=0, progress=False)
    pair = {"edge": {"a0.h0->m1", "a0.h1->m1"}, "node": {"a0.h0", "a0.h1"}}[level]
    (name,) = pair & set(result.material)
    (doubt,) = doubts_with(result, "outside the circuit")
    assert f"{name} is material in the circuit (1.000), but the whole model loses only 0.000 without it" in doubt
    named = set(re.findall(r"(\S+) is material", doubt))
    assert name in named and named.isdisjoint({"m1", "m1->logits", *(pair - {name})})
    assert any("double outside" in limit for limit in result.limits) and result.limits == LIMITS


def test_where_both_are_in_the_circuit_nothing_is_outside() -> None:
    both = circuit(Planted(REDUNDANT), planted_pairs(), size=46, random_circuits=0, progress=False)
    assert not doubts_with(both, "outside the circuit")


@pytest.mark.parametrize("plan", [CANCELLING, NORMED, SHARED], ids=lambda plan: plan.name)
def test_without_a_double_none_is_named(plan: Plan) -> None:
    result = circuit(Planted(plan), planted_pairs(), random_circuits=0, progress=False)
    assert result.material and not doubts_with(result, "outside the circuit")


OPPOSED = Plan(  # two heads write the sign, and take it away again; a third writes what is left
    "opposed",
    (
        (
            PlantedHead(_axis(0), _axis(2)),
            PlantedHead(_axis(0), _axis(2, 3.0)),
            PlantedHead(_axis(0), _axis(2, -3.0)),
        ),
    ),
    (_nothing,),
    _axis(2),
)


def test_edges_that_cancel_are_named_with_what_leads_to_them() -> None:
    """Both are material, and so is what they read: four of the six edges do nothing together."""
    result = circuit(Planted(OPPOSED), planted_pairs(), random_circuits=0, progress=False)
    assert {"a0.h0->logits", "a0.h1->logits", "a0.h2->logits"} <= set(result.material) and len(result.material) == 6
    (doubt,) = doubts_with(result, "cancel:")
    assert "a0.h1->logits (3.000)" in doubt and "a0.h2->logits (−3.000)" in doubt and "by 0.000 only" in doubt
    assert "input->a0.h1<v>, input->a0.h2<v> then lead nowhere" in doubt and "a0.h0" not in doubt


def test_nodes_that_cancel_are_named() -> None:
    result = circuit(Planted(OPPOSED), planted_pairs(), level="node", random_circuits=0, progress=False)
    (doubt,) = doubts_with(result, "cancel:")
    assert "a0.h1 (3.000)" in doubt and "a0.h2 (−3.000)" in doubt and "a0.h0" not in doubt


def test_what_is_taken_away_again_is_named_beside_a_larger_path() -> None:
    """m1 takes away what m0 writes; a0.h0 writes more than either, and is not part of it."""
    result = circuit(Planted(CANCELLING), planted_pairs(), random_circuits=0, progress=False)
    (doubt,) = doubts_with(result, "cancel:")
    assert "m0->logits (0.600)" in doubt and "m1->logits (−0.600)" in doubt and "m0->m1 then leads nowhere" in doubt
    assert "a0.h0->logits" not in doubt


@pytest.mark.parametrize("plan", [REDUNDANT, NORMED, SHARED], ids=lambda plan: plan.name)
def test_where_nothing_cancels_nothing_is_said(plan: Plan) -> None:
    result = circuit(Planted(plan), planted_pairs(), random_circuits=0, progress=False)
    assert result.material and not doubts_with(result, "cancel:")


def alike_on_pairs(sizes: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], Any]:
    """Effects that are the same on each of four pairs."""
    return {unit: np.full(4, size / 4) for unit, size in sizes.items()}


def test_effects_that_leave_much_are_no_set() -> None:
    from probing.circuits.doubting import _opposed

    for sizes in ({(0, 7): 1.0, (1, 7): -0.6, (2, 8): -1.0}, {(0, 7): 1.0, (1, 7): 1.0, (2, 7): 0.5}):
        assert not _opposed(alike_on_pairs(sizes), DELTA)
    (found,) = _opposed(alike_on_pairs({(0, 7): 1.0, (1, 7): -0.6, (2, 8): -1.0, (3, 7): 0.6}), DELTA)
    assert found == [(1, 7), (3, 7)]


@pytest.mark.parametrize("parts", [(3.0, -1.5, -1.5), (-2.0, 1.0, 0.6, 0.38)])
def test_one_effect_may_cancel_several(parts: tuple[float, ...]) -> None:
    from probing.circuits.doubting import _opposed

    material = {(k, 7): size for k, size in enumerate(parts)} | {(9, 7): 0.5, (9, 8): -0.5}
    (found,) = _opposed(alike_on_pairs(material), DELTA)
    assert sorted(found) == [(k, 7) for k in range(len(parts))]


SATURATED = Plan(  # m1 is a step of what a0.h0 writes, without a slope; a0.h1 writes half of the sign for the logits
    "saturated",
    ((PlantedHead(_axis(0), _axis(2)), PlantedHead(_axis(0), _axis(3, 0.5))), (IDLE, IDLE)),
    (_nothing, lambda x: [*_nothing(x)[:4], 2.0 * (x[2] > 0), *_nothing(x)[5:]]),
    (0.0, 0.0, 0.0, 1.0, 1.0, 0.0),
)


@pytest.mark.parametrize("method", ["eap", "eap_ig"])
def test_edges_without_a_slope_are_named(method: str) -> None:
    result = circuit(Planted(SATURATED), planted_pairs(), method=method, random_circuits=0, progress=False)
    truth, unseen = true_effects(SATURATED), {one["name"]: one for one in result.facts[f"unseen_{method}"]}
    assert set(unseen) == {"a0.h0->m1", "input->a0.h0<v>"}
    for name, one in unseen.items():
        assert one["exact"] == pytest.approx(truth[name], abs=0.02) and one["estimated"] == 0
    (doubt,) = doubts_with(result, "does not see 2 of")
    assert all(f"{name} (0.6" in doubt for name in unseen)
    worst = result.facts[f"largest_error_{method}"]
    assert worst["name"] in unseen and f"they differ most on {worst['name']}" in methods(result)[1]


def test_exact_effects_miss_nothing() -> None:
    """What is measured is no estimate: the same blind spot of EAP is a fact, and no doubt."""
    result = circuit(Planted(SATURATED), planted_pairs(), random_circuits=0, progress=False)
    assert result.facts["unseen_eap"] and not doubts_with(result, "does not see")
    assert {"a0.h0->m1", "input->a0.h0<v>"} <= set(result.material)


def test_nodes_that_eap_leaves_out_are_named() -> None:
    result = circuit(Planted(SATURATED), planted_pairs(), nodes=2, random_circuits=0, progress=False)
    assert set(result.facts["best_nodes"]) == {"m1", "a0.h1"}
    assert set(result.facts["nodes_left_out"]) == {"a0.h0"}
    assert result.facts["nodes_left_out"]["a0.h0"] == pytest.approx(true_effects(SATURATED)["m1->logits"], abs=0.02)
    (doubt,) = doubts_with(result, "Not among the best nodes")
    assert "a0.h0 (0.6" in doubt and "16 pairs" in doubt and "a1.h" not in doubt
    more = circuit(Planted(SATURATED), planted_pairs(), nodes=6, random_circuits=0, progress=False)
    assert not doubts_with(more, "Not among the best nodes")


def test_an_estimate_near_the_exact_effect_is_seen() -> None:
    from probing.circuits.screening import agreement

    exact, names = np.array([0.06, -0.06, 0.9, 0.9, 0.01]), list("abcde")
    found = agreement("eap", names, np.array([0.045, 0.0, 0.04, 0.5, 0.9]), exact, DELTA)
    assert [one["name"] for one in found["unseen_eap"]] == ["c", "b"] and found["largest_error_eap"]["name"] == "e"
