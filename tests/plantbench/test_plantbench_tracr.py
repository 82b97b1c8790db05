"""Tier 3 of Plantbench: compiled programs compute what they are said to, and edits reach only what is edited."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probing.contracts.edited_model import Place
from probing.errors import BadParameter, ConfigError, CorpusError, UnknownName
from probing.jobs.plantbench import PlantbenchJob
from probing.plantbench import tier3
from probing.plantbench.baselines import Protocol
from probing.plantbench.case import Answer, Case, CellTruth, Certificate, Truth
from probing.plantbench.left_out import left_out
from probing.plantbench.scorecard import Scorecard
from probing.plantbench.scoring import Scored, answers, oracle_rule, score
from probing.plantbench.suite import development
from probing.plantbench.tier3_models import TracrModel, read_program, shipped
from probing.provenance import digest
from probing.seeds import generator

NAMES = [folder.name for folder in shipped()]
Words = list[Any]


@cache
def model(name: str) -> TracrModel:
    return read_program(next(folder for folder in shipped() if folder.name == name))


def ids(name: str, n: int = 300) -> Any:
    return model(name).program.sample(n, np.random.default_rng(1))


def ranked(words: Words, key: Callable[[int], Any]) -> Words:
    return [words[i] for i in sorted(range(len(words)), key=key)]


def by_frequency(words: Words) -> Words:
    return ranked(words, lambda i: (-words.count(words[i]), i))


def is_balanced(words: Words, *pairs: str) -> bool:
    for opening, closing in pairs:
        steps = np.cumsum([(word == opening) - (word == closing) for word in words])
        if steps.min() < 0 or steps[-1]:
            return False
    return True


def no_repetition(words: Words) -> int:
    return sum(n == 1 for n in Counter(words).values())


EXPECTED: dict[str, Callable[[Words], Words]] = {
    "fraction": lambda w: [w[: i + 1].count("x") / (i + 1) for i in range(len(w))],
    "histogram": lambda w: [w.count(word) for word in w],
    "histogram-decoy": lambda w: [w.count(word) for word in w],
    "length": lambda w: [len(w)] * len(w),
    "reverse": lambda w: w[::-1],
    "reverse-decoy": lambda w: w[::-1],
    "sort-distinct": sorted,
    "sort": sorted,
    "sort-by-frequency": by_frequency,
    "most-frequent": lambda w: [by_frequency(w)[0]] * len(w),
    "copy-previous": lambda w: [None, *w[:-1]],
    "pattern": lambda w: [i > 0 and w[i - 1] == "a" and w[i] == "b" for i in range(len(w))],
    "once": lambda w: [no_repetition(w)] * len(w),
    "dyck-1": lambda w: [is_balanced(w, "()")] * len(w),
    "shuffle-dyck-2": lambda w: [is_balanced(w, "()", "{}")] * len(w),
}


def test_every_program_has_a_definition_here() -> None:
    assert set(NAMES) == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_program(name: str) -> None:
    program, prompts = model(name).program, ids(name)
    outputs = model(name)(torch.from_numpy(prompts)).numpy()
    values = program.variable(program.output).values
    for row, output in zip(prompts, outputs, strict=True):
        words = [program.vocabulary[i] for i in row[1:] if i != program.padding]
        for expected, found in zip(EXPECTED[name](words), output[1:], strict=False):
            if not values:
                assert float(found[0]) == pytest.approx(expected, abs=1e-4)
            elif found.max() > 0.5:
                assert values[found.argmax()] == expected
            else:  # the first token has none before it
                assert expected in (None, False)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_original(name: str) -> None:
    program = model(name).program
    assert program.checked["outputs_equal"] == program.checked["variables_equal"] == program.checked["inputs"] == 1000
    prompts = program.sample(1000, generator(0, "tracr", name))
    lengths, outputs = (prompts != program.padding).sum(1), []
    for n in np.unique(lengths).tolist():
        decided = model(name).decided(torch.from_numpy(prompts[lengths == n][:, :n])).numpy()[:, 1:]
        outputs.append(decided.round(3).tolist())
    assert digest(outputs) == program.checked["outputs"]


def test_prompts_are_of_the_programs_own_kind() -> None:
    distinct = ids("sort-distinct")[:, 1:]
    assert all(len(set(row)) == len(row) for row in distinct.tolist())
    program = model("dyck-1").program
    opening = [program.vocabulary[i] for i in program.words].index("(")
    shares = (ids("dyck-1")[:, 1:] == program.words[opening]).mean(1)
    assert (shares[::2] == 0.5).all()
    assert (shares[1::2] != 0.5).any()
    lengths = (ids("reverse") != model("reverse").program.padding).sum(1) - 1
    assert {int(n) for n in lengths} == {3, 4, 5, 6}


@pytest.mark.parametrize("name", NAMES)
def test_runs_continue_from_every_site(name: str) -> None:
    given = torch.from_numpy(ids(name, 20))
    states = model(name).run(given)
    final = states[model(name).sites[-1]]
    for site in model(name).sites:
        again = model(name).run(given, site=site, states=states[site])
        assert torch.equal(again[model(name).sites[-1]], final)


def test_changed_and_missing_files_are_refused(tmp_path: Path) -> None:
    source = next(folder for folder in shipped() if folder.name == "fraction")
    with pytest.raises(CorpusError, match="no program"):
        read_program(tmp_path)
    copy = tmp_path / "fraction"
    shutil.copytree(source, copy)
    weights = (copy / "weights.safetensors").read_bytes()
    (copy / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(CorpusError, match="not those that were checked"):
        read_program(copy)
    facts = (copy / "program.json").read_text()
    (copy / "program.json").write_text(facts.replace('"format": 1', '"format": 99'))
    with pytest.raises(CorpusError, match="format"):
        read_program(copy)
    (copy / "program.json").write_text("{")
    with pytest.raises(CorpusError, match="no JSON"):
        read_program(copy)
    with pytest.raises(UnknownName):
        model("fraction").program.variable("fractoin")


def study(name: str, token: int = 3) -> tier3.Study:
    return tier3.Study(model(name), token, 0)


def test_variables_that_say_the_same_are_one_property() -> None:
    properties = {prop.name: prop for prop in study("histogram").properties}
    assert {v.name for v in properties["count"].carriers} == {"count", "count.attention"}
    assert properties["count"].covariates == ("tokens",)
    assert study("fraction").properties[-1].is_number


def test_an_edit_of_coordinates_leaves_the_others_alone() -> None:
    """The count of a does nothing, though the MLP reads it; all coordinates together are the whole state."""
    prompts = ids("histogram-decoy", 64)
    behaviour = tier3.Behaviour(model("histogram-decoy"), 3, "own")
    place, rows = Place("resid.1"), np.arange(64)
    whole = behaviour.instrument(prompts, [place])
    donors = np.roll(rows, 1)
    for variable, changes in (("count_a", False), ("count", True)):
        dims = list(model("histogram-decoy").program.variable(variable).dims)
        part = tier3.Coordinates(whole, dims)
        given = {"": torch.from_numpy(part.states(place)[donors])}
        moved = part.run_from(place.site, rows, given).numpy() - whole.clean()
        assert bool(np.abs(moved).max() > 0.5) is changes
    every = tier3.Coordinates(whole, list(range(whole.states(place).shape[1])))
    np.testing.assert_array_equal(
        every.run_from(place.site, rows, {"": torch.from_numpy(every.states(place)[donors])}).numpy(),
        whole.exchange(place, rows, donors).numpy(),
    )


def certificate(label: Any, s: float, noise: float = 0.0) -> Certificate:
    return Certificate(label, "", s, s, None, None, None, 100, noise=noise)


def test_a_cell_is_scored_only_if_both_oracles_agree_beyond_noise() -> None:
    used, unused = certificate("used", 0.5), certificate("unused", 0.0)
    assert tier3.agreed(used, used).label == "used"
    assert tier3.agreed(unused, unused).label == "unused"
    assert tier3.agreed(unused, used).label == tier3.agreed(used, unused).label == "band"
    noisy = certificate("used", 0.12, noise=0.11)
    assert tier3.agreed(noisy, noisy).label == "band"


def test_cells_that_are_left_out_have_a_reason() -> None:
    used, unused = certificate("used", 0.5), certificate("unused", 0.0)
    assert tier3.left_out(unused, used) == tier3.left_out(unused, certificate("band", 0.07)) == "collinear"
    assert tier3.left_out(used, used) == tier3.left_out(unused, unused) == ""
    cancels = replace(certificate("band", 0.08, noise=0.08), e=1.4)
    assert tier3.left_out(cancels, cancels) == "cancelling"
    assert tier3.left_out(cancels, used) == tier3.left_out(used, unused) == "other"


def test_tokens_are_collinear_once_what_is_computed_of_them_is_read() -> None:
    """In `fraction`, is_x alone is read after it is computed: the directions of the token do nothing then."""
    suite = [
        (case, truth)
        for case, truth in tier3.cases(0, names=["fraction"])
        if {cell.property for cell in case.cells} == {"tokens"}
    ]
    assert suite
    for _, truth in suite:
        reasons = {cell.place.site: known.left_out for cell, known in truth.cells.items()}
        assert reasons == {"resid.0": "", "resid.1": "collinear", "mid.1": ""}


def scored(label: Any, verdict: Any, reason: Any = "") -> Scored:
    truth = CellTruth("", certificate(label, 0.5 if label == "used" else 0.0), 1.0, 0.5, reason)
    return Scored("case", 3, 1, "fraction", "x at resid.0", truth, Answer(verdict), 0.0)


def test_both_readings_of_truth_are_counted() -> None:
    """Collinear cells that are called used are right by no label, and wrong by directions."""
    cells = [scored("used", "used")] * 9 + [scored("unused", "unused")] * 6
    cells += [scored("band", "used", "collinear")] * 3 + [scored("band", "abstain", "collinear")]
    cells += [scored("band", "unused", "cancelling")] * 2 + [scored("band", "used", "other")]
    found = left_out(cells)
    assert (found.collinear, found.collinear_used, found.collinear_unused) == (4, 3, 0)
    assert (found.cancelling, found.cancelling_used, found.cancelling_unused, found.other) == (2, 0, 2, 1)
    assert (found.unused, found.false_used) == (6, 0)
    assert (found.unused_by_directions, found.false_used_by_directions) == (10, 3)
    card = Scorecard({"rule": cells})
    assert "3 of 10, 0.300" in card.left_out_tables()
    assert "9 of 12, 0.750" in card.left_out_tables()
    kept = json.loads(card.to_json())["left_out"]["rule"]
    assert kept["collinear_used"] == kept["by_case"]["fraction"]["collinear_used"] == 3
    assert Scorecard({"rule": [replace(s, tier=1) for s in cells]}).left_out_tables() == ""


def test_programs_and_seeds_are_chosen() -> None:
    some = development(seeds=[1], tiers=[3], programs=["length"])
    assert {case.name for case, _ in itertools.islice(some, 3)} == {"length"}
    with pytest.raises(UnknownName, match="length"):
        development(tiers=[3], programs=["lenght"])
    with pytest.raises(ConfigError, match="no programs"):
        PlantbenchJob(tiers=["0"], programs=["length"]).run(progress=False)
    with pytest.raises(ConfigError, match="first-seed"):
        PlantbenchJob(tiers=["3"], heldout=True, first_seed=1).run(progress=False)
    with pytest.raises(BadParameter, match="no such suite"):
        PlantbenchJob(tiers=["3"], seeds=2, first_seed=19).run(progress=False)


def test_truths_of_a_program_with_a_decoy() -> None:
    """The count is used from the site where it is written, at its own token; the decoy nowhere, tokens until read."""
    found = {}
    for case, truth in tier3.cases(0, names=["histogram-decoy"]):
        width = case.instrument.clean().shape[1]
        for cell, known in truth.cells.items():
            found[cell.property, cell.place.site, "own" if width < 10 else "others"] = known.certificate
    assert {c.label for (name, _, read), c in found.items() if name == "output" and read == "own"} == {"used"}
    assert {c.label for (name, _, read), c in found.items() if name == "output" and read == "others"} == {"unused"}
    decoys = [c for (name, _, _), c in found.items() if name == "count_a"]
    assert len(decoys) >= 4
    assert max(c.e for c in decoys) < 1e-4
    assert found["tokens", "resid.2", "own"].label == "unused"


def test_verdicts_on_a_program() -> None:
    suite = list(tier3.cases(0, names=["copy-previous"]))
    rates = score(Protocol(), suite)
    assert rates.false_used == 0
    assert rates.recall_used is not None
    assert rates.recall_used > 0.5
    perfect = score(oracle_rule(suite), suite)
    assert perfect.precision_used == perfect.recall_used == 1


def test_tier_3_is_one_of_the_suite() -> None:
    assert 3 in development(seeds=[0], tiers=[3]).tiers


# Real values, counts beside a decoy, classes, and brackets of one property. All fifteen programs take half an hour:
# `probing plantbench --tier 3 --rule protocol --seeds 1 --first-seed 1` scores them (docs/plantbench.md).
JUDGED = ("fraction", "histogram-decoy", "length", "pattern", "reverse")


def of_brackets(prop: str, seed: int) -> Iterator[tuple[Case, Truth]]:
    """The cases of one property of `dyck-1` at its last token."""
    program = model("dyck-1")
    of_token = tier3.Study(program, tier3.edited_tokens(program)[-1], seed)
    (chosen,) = (one for one in of_token.properties if one.name == prop)
    for read in tier3.READS:
        yield from of_token.case(1, chosen, read)


@pytest.mark.slow
def test_verdicts_on_programs_of_every_kind() -> None:
    rates = score(Protocol(), itertools.chain(tier3.cases(1, names=JUDGED), of_brackets("balanced", 1)))
    assert rates.used >= 20
    assert rates.unused >= 30
    assert rates.precision_used is not None
    assert rates.recall_used is not None
    assert rates.fpr is not None
    assert rates.precision_used >= 0.95
    assert rates.recall_used >= 0.9
    assert rates.fpr <= 0.05


def test_the_score_card_has_every_cell_once() -> None:
    suite = list(tier3.cases(0, names=["fraction"]))
    found = answers({"oracle": oracle_rule(suite)}, suite)
    rows = json.loads(Scorecard(found).to_json())["cells"]
    assert len(rows) == len(found["oracle"]) == sum(len(case.cells) for case, _ in suite)
    assert {row["left_out"] for row in rows} == {"", "collinear"}


def test_tables_by_program_are_of_tier_3_alone() -> None:
    cell = next(iter(tier3.cases(0, names=["length"])))
    found = answers({"oracle": oracle_rule([cell])}, [cell])
    card = Scorecard(found)
    assert any(line.startswith("3.") and "length" in line for line in card.case_tables(tier=3).splitlines())
    assert len(card.case_tables(tier=1).splitlines()) == 2
