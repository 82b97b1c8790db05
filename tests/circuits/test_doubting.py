"""Doubts on planted circuits: what is said is so in the whole model, and nothing is said where nothing is planted."""

from __future__ import annotations

import re

import pytest

from probing.circuits import circuit
from probing.results.circuit import LIMITS, CircuitResult
from tests.circuits.test_planted import true_effects
from tests.samples.circuit_samples import CANCELLING, NORMED, PLANS, REDUNDANT, SHARED, Plan, Planted, planted_pairs


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
