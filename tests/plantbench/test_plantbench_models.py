"""Tiers 1 and 2 of Plantbench: compiled and trained models are what they are said to be, in memory and on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from probing.contracts.edited_model import Place
from probing.errors import BadParameter, CorpusError, PlantFailed
from probing.plantbench import tier1, tier2
from probing.plantbench.built import cells_as_json, compiled, joints_as_json, of_training, truth_from_json
from probing.plantbench.case import Cell, CellTruth, Joint, Truth
from probing.plantbench.certifying import certified
from probing.plantbench.compiling import basis
from probing.plantbench.folders import read_case, read_truth_file, write_case
from probing.plantbench.planted_model import PlantedModel, PromptInstrument
from probing.plantbench.prompts import Prompts
from probing.plantbench.suite import development
from probing.plantbench.tier1_cases import CASES, FAMILIES, plant
from probing.plantbench.tier2_models import Recipe, Trained, accuracy, trained
from probing.seeds import child_seed, generator
from probing.text.corpus import Corpus
from tests.conftest import ROOT

SHIPPED = ROOT / "datasets" / "plantbench"
EVERY = [(number, twin) for number, spec in CASES.items() for twin in spec.twins]


SUBJECT, MOVED = ("resid.1", "subject"), ("resid.2", "query")


def of_b(number: int, twin: str, family: str, *places: tuple[str, str], pairs: int = 64) -> Truth:
    """Certificates of property B at some of the places that the case is about."""
    claim = compiled(plant(number, twin, family=family)).claim
    wanted = [Cell(Place(*place), "B") for place in places or (SUBJECT, MOVED)]
    cells = tuple(cell for cell in claim.cells if cell in wanted)
    return certified(replace(claim, cells=cells), seed=1, n_pairs=pairs, probe_rows=256)


def found(truth: Truth, site: str, position: str, name: str = "B") -> CellTruth:
    return truth.cells[Cell(Place(site, position), name)]


def test_basis_is_orthonormal_and_orthogonal_to_ones() -> None:
    columns = basis(100, 3)
    np.testing.assert_allclose(columns.T @ columns, np.eye(100), atol=1e-10)
    np.testing.assert_allclose(columns.sum(0), 0, atol=1e-10)


@pytest.mark.parametrize("number", CASES)
def test_unread_cells_of_compiled_models_have_no_effect(number: int) -> None:
    family = FAMILIES[number % 2]
    cells = of_b(number, "unused", family, SUBJECT, MOVED, ("resid.1", "query"), ("resid.2", "subject")).cells.values()
    assert cells
    assert max(cell.certificate.e for cell in cells) < 1e-5
    assert {cell.certificate.label for cell in cells} == {"unused"}


@pytest.mark.parametrize("number", [3, 6, 8, 9, 18, 19, 21, 22, 23, 24, 28])
def test_what_is_read_is_used_at_the_subject_then_at_the_query(number: int) -> None:
    idle = (("resid.1", "query"), ("resid.2", "subject"))
    truth = of_b(number, "used", FAMILIES[number % 2], SUBJECT, MOVED, *idle)
    assert found(truth, "resid.1", "subject").certificate.label == "used"
    assert found(truth, "resid.2", "query").certificate.mf == pytest.approx(1, abs=0.02)
    for place in idle:
        assert found(truth, *place).certificate.label == "unused"


@pytest.mark.parametrize("family", FAMILIES)
def test_opposed_paths_are_used_though_the_whole_has_no_effect(family: str) -> None:
    truth = of_b(7, "used", family, ("resid.0", "subject"), SUBJECT, ("resid.1", "query"))
    assert found(truth, "resid.0", "subject").certificate.e < 0.01
    for position in ("subject", "query"):
        assert found(truth, "resid.1", position).certificate.s > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_each_of_two_redundant_copies_mediates_half(family: str) -> None:
    truth = of_b(11, "used", family, SUBJECT, MOVED, ("resid.1", "query"), pairs=256)
    for position in ("subject", "query"):
        assert found(truth, "resid.1", position).certificate.mf == pytest.approx(0.5, abs=0.08)
    assert found(truth, "resid.2", "query").certificate.mf == pytest.approx(1, abs=1e-3)
    joint = Joint("B", "resid.1", ("subject", "query"))
    assert set(truth.joints) == {joint}
    assert truth.joints[joint].mf == pytest.approx(1, abs=1e-3)
    assert truth.joint(Cell(Place("resid.1", "query"), "B")) == truth.joints[joint]
    assert truth.joint(Cell(Place("resid.2", "query"), "B")) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_backup_works_only_where_the_code_is_gone(family: str) -> None:
    built = compiled(plant(12, "used", family=family))
    prompts = built.planted.language.sample(64, generator(0, "repair"))
    instrument = PromptInstrument(built.planted, prompts)
    place, rows = Place("resid.1", "query"), np.arange(64)
    gone = torch.from_numpy(instrument.states(place)).clone()
    circuit = plant(12, "used", family=family).circuit
    code = torch.from_numpy(basis(len(circuit.slots), 0)[:, circuit.index("early.B")]).float()
    gone -= (gone @ code)[:, None] * code
    with torch.no_grad():
        repaired = instrument.run_from(place.site, rows, {place.position: gone}).double().numpy()
    truth = of_b(12, "used", family, SUBJECT, ("resid.1", "query"))
    spread = np.sqrt(instrument.clean().var(0).sum())
    lost = np.sqrt(((repaired - instrument.clean()) ** 2).sum(1).mean()) / spread
    assert lost < 0.5 * found(truth, "resid.1", "query").certificate.s
    assert found(truth, "resid.1", "subject").certificate.label == "unused"


def test_lengths_act_through_norms_and_parities_through_the_site() -> None:
    lengths = of_b(4, "used", "gpt2", SUBJECT)
    assert found(lengths, "resid.1", "subject").certificate.sub_label == "norm-mediated"
    parity = of_b(10, "used", "llama", MOVED, pairs=512)
    assert found(parity, "resid.2", "query").certificate.sub_label == "site only"
    assert found(parity, "resid.2", "query").decodable


@pytest.mark.parametrize("number", [number for number, spec in CASES.items() if len(spec.twins) == 2])
def test_twins_have_codes_of_one_length(number: int) -> None:
    lengths = []
    for twin in CASES[number].twins:
        planted = compiled(plant(number, twin, family=FAMILIES[number % 2])).planted
        prompts = planted.language.sample(256, generator(0, "twins"))
        high = planted.language.lexicon.real("B")[prompts.words] > np.mean(planted.language.lexicon.real("B"))
        places = [Place(*SUBJECT), *([] if number == 4 else [Place(*MOVED)])]  # a long code is moved through its norm
        states = planted.states_at(prompts, places)
        lengths.append([np.linalg.norm(states[p][high].mean(0) - states[p][~high].mean(0)) for p in places])
    assert min(lengths[0]) > 0.1
    np.testing.assert_allclose(*lengths, rtol=0.05)


def test_a_contradicted_intention_raises() -> None:
    claim = compiled(plant(1, "used")).claim
    cell = Cell(Place("resid.2", "query"), "B")
    with pytest.raises(PlantFailed, match="not what it was built to be"):
        certified(replace(claim, cells=(cell,), intended={cell: "unused"}), seed=1, n_pairs=32, probe_rows=256)


def test_building_again_gives_the_same_weights_and_labels() -> None:
    one, other = (compiled(plant(11, "used", seed=4)) for _ in range(2))
    for (name, first), (_, second) in zip(
        one.planted.model.state_dict().items(), other.planted.model.state_dict().items(), strict=True
    ):
        assert torch.equal(first, second), name
    assert cells_as_json(of_b(11, "used", "gpt2")) == cells_as_json(of_b(11, "used", "gpt2"))


def test_other_seeds_give_other_models() -> None:
    one, other = (compiled(plant(1, "used", seed=seed)).planted.model.state_dict() for seed in (0, 1))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_no_such_case() -> None:
    for number, twin in ((2, "used"), (29, "unused"), (1, "band")):
        with pytest.raises(BadParameter, match="no such case"):
            plant(number, twin)
    with pytest.raises(BadParameter, match="family"):
        plant(1, "used", family="gtp2")


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_from_the_middle_are_runs_of_the_whole(family: str) -> None:
    built = compiled(plant(17, "used", family=family))
    instrument = PromptInstrument(built.planted, built.planted.language.sample(40, generator(0, "rows")))
    instrument.check()
    rows, place = np.arange(40), Place("resid.2", "query")
    donors = torch.from_numpy(instrument.states(place)[::-1].copy())
    position = torch.full((40,), 11)
    prompts = built.planted.language.sample(40, generator(0, "rows"))
    with torch.no_grad():
        found = instrument.run_from(place.site, rows, {place.position: donors})
        with built.planted.setting(2, [(position, donors)]):
            wanted = built.planted.answers(torch.from_numpy(prompts.ids))
        frozen = instrument.run_from(
            place.site, rows, {place.position: torch.from_numpy(instrument.states(place))}, frozen_norms=True
        )
    torch.testing.assert_close(found, wanted)
    np.testing.assert_allclose(frozen.double().numpy(), instrument.clean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("number", "family"), [(19, "gpt2"), (18, "llama")])
def test_a_folder_has_the_same_logits_and_the_same_truth(number: int, family: str, tmp_path: Path) -> None:
    built = compiled(plant(number, "used", family=family))
    truth = of_b(number, "used", family)
    write_case(tmp_path, built, truth, rows=40, pairs=3)
    case, read = read_case(tmp_path)
    assert cells_as_json(read) == cells_as_json(truth)
    assert joints_as_json(read) == joints_as_json(truth)
    assert (case.number, case.twin, case.n_classes["B"]) == (number, "used", {18: 5, 19: 0}[number])
    case.instrument.check()
    ids = prompts_of(tmp_path, built.planted)
    wanted = PromptInstrument(built.planted, ids)
    np.testing.assert_allclose(case.instrument.clean(), wanted.clean(), rtol=1e-4, atol=1e-4)
    place = Place("resid.2", "subject")
    np.testing.assert_allclose(case.instrument.states(place), wanted.states(place), atol=1e-5)
    np.testing.assert_allclose(case.labels["B"], label_values(built.planted, ids))


def prompts_of(folder: Path, planted: PlantedModel) -> Prompts:
    """The prompts of a folder's corpus, from its texts and spans alone."""
    index = {word: i for i, word in enumerate(planted.language.vocabulary)}
    examples = Corpus.read(str(folder / "corpus.jsonl")).examples
    ids = np.array([[index[word] for word in example.text.split()] for example in examples])
    subject = np.array([example.text[: example.spans["subject"][0]].count(" ") for example in examples])
    words = ids[np.arange(len(ids)), subject] - planted.language.first_subject
    return Prompts(ids, words, subject)


def label_values(planted: PlantedModel, prompts: Prompts) -> np.ndarray:
    lexicon = planted.language.lexicon
    return (lexicon.real("B") if "B" in lexicon.values else lexicon.codes("B"))[prompts.words]


def test_twins_are_equal_but_for_the_property(tmp_path: Path) -> None:
    built = compiled(plant(18, "used"))
    write_case(tmp_path, built, of_b(18, "used", "gpt2"), rows=12, pairs=5)
    case, _ = read_case(tmp_path, minimal_pairs="B", check=False)
    assert case.twins is not None
    assert case.instrument.n_rows == 10
    assert (case.twins[case.twins] == np.arange(10)).all()
    assert (case.labels["B"] != case.labels["B"][case.twins]).all()
    for name in "AC":
        assert (case.labels[name] == case.labels[name][case.twins]).all()
    with pytest.raises(CorpusError, match="no minimal pairs"):
        read_case(tmp_path, minimal_pairs="D", check=False)


def test_splits_keep_groups_whole(tmp_path: Path) -> None:
    write_case(tmp_path, compiled(plant(1, "used")), of_b(1, "used", "gpt2"), rows=200)
    corpus = Corpus.read(str(tmp_path / "corpus.jsonl"))
    assert corpus.splits == ("train", "dev", "test")
    assert len({(example.group, example.split) for example in corpus.examples}) == 50


def test_what_is_not_the_certified_case_is_refused(tmp_path: Path) -> None:
    both = of_b(1, "used", "gpt2", SUBJECT, ("resid.1", "query"))
    write_case(tmp_path, compiled(plant(1, "used")), both, rows=8)
    told = json.loads((tmp_path / "truth.json").read_text())
    for change, message in (
        ({"format": 1}, "another format"),
        ({"format": 3}, "another format"),
        ({"cells": {}}, "without a sound 'cells'"),
        ({"cells": []}, "without cells"),
        ({"cells": [told["cells"][0]] * 2}, "twice"),
        ({"cells": [told["cells"][0] | {"E": "0"}]}, "sound 'E'"),
        ({"joints": {}}, "without a sound 'joints'"),
        ({"joints": [{"site": "resid.0"}]}, "joint 0"),
        ({"joints": [told["joints"][0] | {"positions": ["query"]}]}, "sound 'positions'"),
        ({"sha256": {"../truth.json": "0"}}, "not the file"),
        ({"sha256": {"corpus.jsonl": "0"}}, "not the file"),
        ({"behaviour": {"kind": "other"}}, "unknown behaviour"),
    ):
        (tmp_path / "truth.json").write_text(json.dumps(told | change))
        with pytest.raises(CorpusError, match=message):
            read_case(tmp_path, check=False)
    (tmp_path / "truth.json").write_text("{")
    with pytest.raises(CorpusError, match="no truth"):
        read_case(tmp_path)


def test_a_tier_one_case_shows_no_rule_what_it_is() -> None:
    case, truth = tier1.build(6, "unused", 1, rows=60, pairs=32, probe_rows=256)
    assert {cell.property for cell in case.cells} == {"B"} == {cell.property for cell in truth.cells}
    assert case.blind().twin == ""
    case.instrument.check()


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "pooled"])
def test_shipped_models_are_still_what_their_truth_says(name: str) -> None:
    told = read_truth_file(SHIPPED / name)  # refuses files of another hash
    truth = truth_from_json(told["cells"], name, told["joints"])
    recipe = Recipe(**told["configuration"])
    case, _ = read_case(SHIPPED / name, rows=64, check=False)
    built = of_training(recipe, Trained(planted_of(SHIPPED / name, recipe), torch.ones(recipe.width), 0.0))
    assert built.configuration_sha256 == told["configuration_sha256"]
    chosen = (("resid.3", "A"), ("resid.3", "B"), ("resid.2", "B"))
    cells = tuple(Cell(Place(site, "query"), name) for site, name in chosen)
    again = certified(
        replace(built.claim, cells=cells),
        seed=child_seed(recipe.seed, "other"),
        n_pairs=256,
        probe_rows=2048,
    )
    for cell in cells:
        assert again.cells[cell].certificate.label == truth.cells[cell].certificate.label
        assert again.cells[cell].certificate.s == pytest.approx(truth.cells[cell].certificate.s, rel=0.1, abs=0.01)
        assert again.cells[cell].probe_accuracy == pytest.approx(truth.cells[cell].probe_accuracy, abs=0.05)
    sites = ("resid.0", "resid.1", "resid.2", "resid.3")
    assert {joint.site for joint in truth.joints if joint.name == "B"} == set(sites)
    assert {truth.joints[Joint("B", site, ("subject", "query"))].label for site in sites} == {"unused"}
    assert case.instrument.n_rows == 64
    assert (SHIPPED / name / "model" / "model.safetensors").stat().st_size < 2**20


def test_a_suite_refuses_absent_models_before_it_makes_any_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier2, "SHIPPED", tmp_path)
    with pytest.raises(CorpusError, match="leave tier 2 out"):
        development(seeds=[0], tiers=[0, 2])
    assert development(seeds=[0], tiers=[0, 1]).seeds == (0,)


def planted_of(folder: Path, recipe: Recipe) -> PlantedModel:
    """A shipped model, read without the toolkit's own readers."""
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    loader = AutoModel if recipe.pooled else AutoModelForMaskedLM if recipe.family == "bert" else AutoModelForCausalLM
    pooled = load_file(folder / "readout.safetensors")["weights"] if recipe.pooled else None
    return PlantedModel(loader.from_pretrained(folder / "model").eval(), recipe.language, pooled)


def test_shipped_folder_is_self_contained(tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED / "gpt2", tmp_path / "elsewhere")
    case, truth = read_case(folder, split="test")
    assert case.instrument.n_rows == 600
    case.instrument.check()
    assert truth.cells[Cell(Place("resid.3", "query"), "A")].certificate.label == "used"
    b = [found for cell, found in truth.cells.items() if cell.property == "B"]
    assert {cell.certificate.label for cell in b} == {"unused"}
    assert max(cell.certificate.e for cell in b) <= 0.02


@pytest.mark.slow
def test_training_gives_a_model_that_certifies(tmp_path: Path) -> None:
    recipe = Recipe(family="llama", seed=1)
    model = trained(recipe)
    assert accuracy(model.planted, 2048, generator(1, "accuracy")) > 0.98
    truth = certified(of_training(recipe, model).claim, seed=2, n_pairs=512, probe_rows=4096)
    for site in ("resid.2", "resid.3"):
        assert found(truth, site, "query").probe_accuracy > 0.9
        assert found(truth, site, "query").certificate.label == "unused"
    assert found(truth, "resid.3", "query", "A").certificate.label == "used"
