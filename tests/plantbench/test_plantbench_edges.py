"""The oracle of edges: senders add up to the residual stream, and known edges have known effects."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from probing.circuits.graph import Graph
from probing.errors import ConfigError
from probing.jobs.plantbench import PlantbenchJob
from probing.plantbench import circuit_scores
from probing.plantbench.built import compiled
from probing.plantbench.edge_truth import EdgeTruth, HookedParts, Parts, TracrParts, edge_truth, pairs_of
from probing.plantbench.tier1_cases import FAMILIES, plant
from probing.plantbench.tier3_models import read_program, shipped
from probing.seeds import generator


def tracr_parts(name: str, token: int = 3) -> tuple[TracrParts, Any]:
    model = read_program(next(folder for folder in shipped() if folder.name == name))
    return TracrParts(model, token), model


def hooked(number: int, twin: str, family: str) -> tuple[HookedParts, Any]:
    planted = compiled(plant(number, twin, family=family)).planted
    return HookedParts(planted), planted


@pytest.mark.parametrize("family", FAMILIES)
def test_writes_of_hooked_models_add_up(family: str) -> None:
    parts, planted = hooked(10, "used", family)
    ids = torch.from_numpy(planted.language.sample(8, generator(0, "edges")).ids)
    with torch.no_grad(), planted.reading([len(planted.blocks)]) as states:
        clean = planted.answers(ids)
        writes = parts.writes(ids)
    total = sum(writes.values())
    assert isinstance(total, torch.Tensor)
    assert float((total - states[0]).abs().max()) <= 1e-5 * float(states[0].abs().max())
    with torch.no_grad():
        torch.testing.assert_close(parts.outputs(ids, {}), clean)


@pytest.mark.parametrize("name", ["reverse-decoy", "dyck-1"])
def test_writes_of_programs_add_up(name: str) -> None:
    parts, model = tracr_parts(name)
    ids = torch.from_numpy(model.program.sample(32, np.random.default_rng(0)))
    with torch.no_grad():
        final = model.run(ids)[model.sites[-1]]
        total = sum(parts.writes(ids).values())
        assert isinstance(total, torch.Tensor)
        assert float((total - final).abs().max()) <= 1e-5 * float(final.abs().max())
        torch.testing.assert_close(parts.outputs(ids, {}), model(ids)[:, 3], rtol=0, atol=1e-4)


def check_last_reader(parts: Parts, first: torch.Tensor, second: torch.Tensor) -> None:
    """All senders' differences, added to what the logits read, give the other prompt's output."""
    with torch.no_grad():
        own, other = parts.writes(first), parts.writes(second)
        senders = [name for name, kind in parts.order if kind == "sender"]
        added = torch.stack([other[s] - own[s] for s in senders]).sum(0)
        moved, expected = parts.outputs(first, {"logits": added}), parts.outputs(second, {})
    assert float((moved - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_read_all_senders_of_hooked_models(family: str) -> None:
    parts, planted = hooked(11, "used", family)
    first, second = planted.language.pairs(8, "B", generator(1, "edges"))
    check_last_reader(parts, torch.from_numpy(first.ids), torch.from_numpy(second.ids))


def test_the_output_reads_all_senders_of_a_program() -> None:
    parts, model = tracr_parts("sort")
    ids = torch.from_numpy(model.program.sample(64, np.random.default_rng(0)))
    check_last_reader(parts, ids[:32], ids[32:])


def truths(parts: Parts, first: Any, second: Any) -> dict[str, EdgeTruth]:
    pairs = pairs_of(parts, first, second, 64)
    assert len(pairs.clean) > 20
    return {edge.name: edge for edge in edge_truth(parts, pairs.clean, pairs.corrupted, pairs.metric)}


@cache
def of_case(number: int, twin: str, family: str) -> dict[str, EdgeTruth]:
    parts, planted = hooked(number, twin, family)
    language = planted.language
    first = language.sample(400, generator(2, "edges"))
    second = first.ids.copy()
    words = generator(3, "edges").permutation(first.words)
    second[np.arange(400), first.subject] = language.first_subject + words
    return truths(parts, first.ids, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_of_a_plain_model(family: str) -> None:
    """The head of block 1 reads values from the input and writes to the logits; nothing else says the answer."""
    known = of_case(1, "used", family)
    assert known["input->a1.h0<v>"].label == known["a1.h0->logits"].label == "material"
    assert known["a1.h0->logits"].effect == pytest.approx(1, abs=0.1)
    assert {edge.label for edge in known.values() if edge.sender.startswith("m")} == {"inert"}
    assert {edge.label for edge in known.values() if edge.reader.startswith(("a2", "a3"))} == {"inert"}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_mlp_writes_counts_only_where_it_is_read(family: str) -> None:
    used, unused = (of_case(16, twin, family) for twin in ("used", "unused"))
    assert used["m2->logits"].label == "material"
    assert abs(unused["m2->logits"].effect) < 0.02
    assert unused["a1.h0->m2"].label in ("inert", "weak")


def test_edges_of_a_program_are_those_of_its_variables() -> None:
    parts, model = tracr_parts("sort-distinct")
    ids = model.program.sample(800, np.random.default_rng(0))
    known = truths(parts, ids[:400], ids[400:])
    assert known["input->a0.h0<q>"].label == known["input->a0.h0<k>"].label == "material"  # counts smaller tokens
    assert known["m0->a1.h0<k>"].label == "material"  # the rank asks for its place
    assert known["input->a1.h0<v>"].label == "material"  # the token is moved there
    assert known["a1.h0->logits"].effect == pytest.approx(1, abs=1e-3)
    assert known["input->logits"].label == known["m0->logits"].label == "inert"


def test_a_decoy_that_an_mlp_ignores_is_inert() -> None:
    parts, model = tracr_parts("histogram-decoy")
    ids = model.program.sample(800, np.random.default_rng(0))
    known = truths(parts, ids[:400], ids[400:])
    idle = [edge for edge in known.values() if edge.reader == "logits" and edge.sender != "m1"]
    assert {edge.label for edge in idle} == {"inert"}
    assert known["m1->logits"].effect == pytest.approx(1, abs=1e-3)


def test_numbers_have_a_metric_of_their_own() -> None:
    parts, model = tracr_parts("fraction")
    ids = model.program.sample(400, np.random.default_rng(0))
    pairs = pairs_of(parts, ids[:200], ids[200:], 100)
    with torch.no_grad():
        fall = pairs.metric(parts.outputs(pairs.clean, {})) - pairs.metric(parts.outputs(pairs.corrupted, {}))
    assert bool((fall > 0).all())


def test_records_as_json() -> None:
    record = EdgeTruth("m0", "logits", 1 / 3, 0.5, "material")
    assert record.name == "m0->logits"
    assert record.as_json()["effect"] == 0.333333


def test_circuits_of_a_program_are_scored_by_its_edges() -> None:
    """The edges of a program that sorts are all called material, and no inert edge is."""
    (known,) = circuit_scores.tier3(0, names=["sort-distinct"])
    score = circuit_scores.scored(known)
    assert score.material >= 5
    assert score.inert >= 10
    assert score.hits == score.material
    assert score.false == 0
    assert score.auroc["exact"] == 1
    lines = circuit_scores.table([score]).splitlines()
    assert any(line.startswith(f"recall of material: {score.material} of {score.material}, 1.000") for line in lines)


def test_area_under_the_curve() -> None:
    effects = {"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.0}
    assert circuit_scores.auroc(effects, {"a", "b"}, {"c", "d"}) == pytest.approx(3.5 / 4)
    assert circuit_scores.auroc(effects, {"d"}, {"a"}) == 0
    assert circuit_scores.auroc(effects, {"a"}, set()) is None


def test_a_split_program_is_the_program() -> None:
    parts, model = tracr_parts("dyck-1")
    split = circuit_scores.TracrSplit(model, 3)
    ids = torch.from_numpy(model.program.sample(16, np.random.default_rng(0)))
    x = split.embed(ids)
    for layer in range(len(split.layers)):
        x = split.block(layer, x)
    torch.testing.assert_close(model.outputs(x), model(ids), rtol=0, atol=1e-4)
    readers = [name for name, kind in parts.order if kind == "reader"]
    assert set(Graph(split.layers).senders) == {name for name, kind in parts.order if kind == "sender"}
    assert {Graph(split.layers).reader_name(i) for i in range(len(readers))} == set(readers)


def test_circuits_need_a_tier_with_known_edges() -> None:
    with pytest.raises(ConfigError, match="no edges are known"):
        PlantbenchJob(tiers=["0"], circuits=True).run(progress=False)
