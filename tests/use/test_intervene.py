"""From a corpus and a running model to verdicts, by function and by command."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import BadParameter, DegenerateDesign, InputError, NoBehaviour, TooFewGroups, UnknownName
from probing.reporting import print_verdicts
from probing.reporting.wording import decimal
from probing.use.directions import read_evidence
from probing.use.effects import UseOptions
from probing.use.row_weights import labelled_corpus, rare_classes, without
from probing.verdicts.judging import judge, read_use_run
from probing.verdicts.verdict import UseRun, Word, write_use_run
from tests.conftest import ROOT

REFERENCE = ROOT / "datasets" / "reference"
PLANTED = ROOT / "datasets" / "plantbench"
COARSE = {"used": "used", "unused": "decodable only"}
BEHAVIOUR = "next_token:answers=was|were|is|are"
QUICK = UseOptions(curve=False, details=False, null=False)
TASKS = ["column:tense", "column:animacy"]


@pytest.fixture(scope="module")
def corpus() -> pb.Corpus:
    return pb.Corpus.read({split: str(REFERENCE / f"{split}.jsonl") for split in ("train", "dev", "test")})


@pytest.fixture(scope="module")
def model() -> pb.LanguageModel:
    return pb.LanguageModel.load(str(REFERENCE / "model"))


@pytest.fixture(scope="module")
def run(model: pb.LanguageModel, corpus: pb.Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[UseRun, Path]:
    folder = tmp_path_factory.mktemp("use")
    found = pb.intervene(
        model,
        corpus,
        tasks=TASKS,
        behaviour=BEHAVIOUR,
        positions=["end"],
        sites="resid.2",
        max_rows=600,
        covariates=["column:subject_number"],
        options=QUICK,
        to=folder,
        progress=False,
    )
    return found, folder


def test_the_certified_truth_of_the_reference_model_is_found(run: tuple[UseRun, Path]) -> None:
    found, _ = run
    certified = {(c["property"], c["site"], c["position"]): c["certified"] for c in truth()["cells"]}
    assert certified["tense", "resid.2", "query"] == "used" and certified["animacy", "resid.2", "query"] == "unused"
    assert found.verdict("column:tense", "resid.2@end").word is Word.USED_SUBSPACE
    assert found.verdict("column:animacy", "resid.2@end").word is Word.NO_MATERIAL_USE
    assert found.results[0].covariates == ("column:animacy", "column:subject_number")


def truth() -> dict[str, list[dict[str, str]]]:
    return json.loads((REFERENCE / "truth.json").read_text())  # type: ignore[no-any-return]


def test_what_is_measured_is_not_measured_again(
    run: tuple[UseRun, Path], model: pb.LanguageModel, corpus: pb.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder = run
    monkeypatch.setattr("probing.use.run.measure_property", None)
    again = pb.intervene(
        model,
        corpus,
        tasks=TASKS,
        behaviour=BEHAVIOUR,
        positions=["end"],
        sites="resid.2",
        max_rows=600,
        covariates=["column:subject_number"],
        options=QUICK,
        to=folder,
        progress=False,
    )
    assert [v.to_json() for v in again] == [v.to_json() for v in first]
    assert [v.to_json() for v in read_use_run(folder)] == [v.to_json() for v in first]
    assert {path.name for path in folder.iterdir()} == {"use", "use.jsonl", "verdicts.parquet"}
    (folder / "verdicts.jsonl").write_text(
        "of an earlier version\n"
    )  # its folders are read, and it goes when they change
    assert [v.to_json() for v in read_use_run(folder)] == [v.to_json() for v in first]
    write_use_run(read_use_run(folder), folder)
    assert not (folder / "verdicts.jsonl").exists()
    assert (pb.UseRun.table(first)["coarse"] == ["used", "decodable only"]).all()


@pytest.mark.slow
def test_a_second_task_model_or_behaviour_leaves_what_the_first_left_in_the_folder(
    model: pb.LanguageModel, corpus: pb.Corpus, tmp_path: Path
) -> None:
    """They are of one model judged together, as `train` adjusts p over the folder; an untrained twin is another one."""
    given: dict[str, Any] = {"positions": ["end"], "sites": "resid.2", "max_rows": 150}
    given |= {"options": QUICK, "to": tmp_path}
    twin = pb.LanguageModel.load(str(REFERENCE / "model"), untrained=0)
    first = pb.intervene(model, corpus, tasks="column:tense", behaviour=BEHAVIOUR, **given)
    runs = [
        pb.intervene(model, corpus, tasks="column:animacy", behaviour=BEHAVIOUR, **given),
        pb.intervene(model, corpus, tasks="column:tense", behaviour="next_token:answers=was|is", **given),
        pb.intervene(twin, corpus, tasks="column:tense", behaviour=BEHAVIOUR, **given),
        pb.intervene(model, corpus, tasks="column:tense", behaviour=BEHAVIOUR, **(given | {"max_rows": 120})),
    ]
    held = read_use_run(tmp_path)
    assert [len(one.results) for one in (first, *runs)] == [1] * 5
    assert [r.to_json() for r in held.results] == [r.to_json() for one in (first, *runs) for r in one.results]
    assert [v.to_json() for v in held.verdicts] == [v.to_json() for v in judge(held.results)]
    table = pd.read_parquet(tmp_path / "verdicts.parquet")
    assert len(table) == table.unit.nunique() == 5
    plain, untrained = (f"model [weights fb05cb64, {twin}float32]" for twin in ("", "untrained (seed 0), "))
    assert table.model.tolist() == [plain, plain, plain, untrained, plain]
    assert f"Is column:tense used by {untrained}" in shown(held) and f"of {untrained}: " in str(held.verdicts[3])
    page = pb.report(tmp_path).read_text()
    assert page.count('<h2 id="use-') == 5 and f"{untrained[6:]} depends on" in page
    assert held.verdict("column:tense", "resid.2@end", model=untrained).unit == held.results[3].unit
    with pytest.raises(InputError, match="several verdicts"):
        held.verdict("column:tense", "resid.2@end")
    pb.intervene(model, corpus, tasks="column:tense", behaviour=BEHAVIOUR, replace=True, **given)
    assert {r.unit for r in read_use_run(tmp_path).results} == {r.unit for r in held.results[:4]}


def shown(run: UseRun) -> str:
    stream = io.StringIO()
    print_verdicts(run.verdicts, Console(file=stream, width=400, color_system=None))
    return stream.getvalue()


def test_words_are_rows_of_their_own_and_an_encoder_is_read_by_its_pooled_states(corpus: pb.Corpus) -> None:
    model = pb.LanguageModel.load(str(REFERENCE / "model"), kind="base")
    found = pb.intervene(model, corpus, tasks="upos", behaviour="readout", sites="resid.1", max_rows=500, options=QUICK)
    (verdict,) = found
    assert verdict.place == "resid.1" and verdict.decodability is not None and verdict.decodability.passes
    assert found.results[0].left_out and "NOUN" not in found.results[0].left_out  # closed classes have few types


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"behaviour": ""}, NoBehaviour, "no behaviour was declared"),
        ({"behaviour": "next_token:answers=was|nosuchword"}, NoBehaviour, "nosuchword"),
        ({"tasks": ["column:one"]}, DegenerateDesign, "column:one has one value(.|\n)*'same' in 2,400 rows"),
        ({"split": "tiny"}, TooFewGroups, "15 groups(.|\n)*found: 4"),
        ({"positions": []}, BadParameter, "where do the states lie"),
        ({"tasks": ["upos"], "positions": ["end"]}, BadParameter, "their own position"),
        ({"tasks": ["upos", "column:tense"]}, BadParameter, "not measured together"),
        ({"tasks": ["head"], "positions": []}, BadParameter, "task of pairs"),
        ({"tasks": ["column:nosuch"]}, UnknownName, "nosuch"),
        ({"tasks": []}, BadParameter, "no task"),
        ({"sites": "resid.9"}, UnknownName, "resid.9"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    options: dict[str, object],
    error: type[Exception],
    says: str,
    model: pb.LanguageModel,
    corpus: pb.Corpus,
    tmp_path: Path,
) -> None:
    given = {"tasks": ["column:tense"], "behaviour": BEHAVIOUR, "positions": ["end"], "sites": "resid.2"} | options
    changed = tuple(
        replace(e, columns={**e.columns, "one": "same"}, split="tiny" if k < 16 else e.split)
        for k, e in enumerate(corpus.examples)
    )
    with pytest.raises(error, match=says):
        pb.intervene(model, pb.Corpus(changed), to=tmp_path / "x", progress=False, **given)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_directions_are_kept_with_their_verdicts_and_can_be_put_in_again(tmp_path: Path) -> None:
    flags = [f for split in ("train", "dev", "test") for f in ("--corpus", f"{split}={file(split)}")]
    command = [
        "use",
        "--model",
        str(REFERENCE / "model"),
        *flags,
        "--task",
        "column:tense",
        "--behaviour",
        BEHAVIOUR,
        "--position",
        "end",
        "--sites",
        "resid.3",
        "--max-rows",
        "300",
        "--to",
        str(tmp_path),
        "--save-directions",
        "--quiet",
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    (path,) = (tmp_path / "evidence").iterdir()
    found = read_evidence(path)
    assert found.header.labels == ("past", "present") and found.header.verdict.word == Word.USED_SUBSPACE
    assert found.header.identity[:8] == "fb05cb64" and "[weights fb05cb64, float32]" in found.header.model
    applied = CliRunner().invoke(app, ["direction", "apply", str(tmp_path), *command[1:3], "--prompt", "the doctors"])
    assert applied.exit_code == 0 and "column:tense (past → present) added at resid.3@end" in applied.stdout
    states = np.zeros((2, 64), np.float32)
    moved = found.apply(states, start=np.array([0, 1]), goal=np.array([1, 0]))
    assert np.abs(moved).max() > 0.1 and np.allclose(moved[0], -moved[1], atol=1e-6)


def file(split: str) -> Path:
    return REFERENCE / f"{split}.jsonl"


def test_the_command_prints_verdicts_and_writes_them(tmp_path: Path) -> None:
    flags = [f for split in ("train", "dev", "test") for f in ("--corpus", f"{split}={file(split)}")]
    command = [
        "use",
        "--model",
        str(REFERENCE / "model"),
        *flags,
        "--task",
        "column:tense",
        "--behaviour",
        BEHAVIOUR,
        "--position",
        "end",
        "--sites",
        "resid.2",
        "--max-rows",
        "400",
        "--to",
        str(tmp_path),
        "--quiet",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "column:tense used at resid.2" in " ".join(result.output.split()) and "verdicts.parquet" in result.output
    assert " used" in CliRunner().invoke(app, [*command, "--details"]).output
    lines = CliRunner().invoke(app, [*command, "--json"]).output.splitlines()
    assert [json.loads(line)["word"] for line in lines] == ["decodable and used (class-mean subspace)"]


def test_the_shipped_study_shows_verdicts_beside_the_certified_truth() -> None:
    study = pb.Study.from_yaml(REFERENCE / "study.yaml")
    assert study.certified()["column:tense", "resid.3@end"] == "used"
    assert study.certified()["column:animacy", "resid.3@end"] == "unused"
    assert [entry.tasks for entry in study.use] == [["column:subject_number", "column:tense", "column:animacy"]]


def test_classes_too_rare_for_three_folds_are_left_out_and_told(corpus: pb.Corpus) -> None:
    rare = rare_classes(labelled_corpus(corpus, ["upos"]), "upos")
    assert rare and "NOUN" not in rare and "VERB" not in rare
    kept = without(labelled_corpus(corpus, ["upos"]), "upos", rare)
    assert {label for e in kept.examples for label in e.word_columns["upos"]} & set(rare) == set()


@pytest.mark.slow
def test_the_command_finds_what_is_certified_of_a_shipped_model_that_it_knows_nothing_of(tmp_path: Path) -> None:
    """A is used at the query and is a copy at the subject by resid.2; B is decodable everywhere and used nowhere."""
    folder = tmp_path / "llama"
    for name in ("model", "corpus.jsonl"):  # all that the command may see
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(PLANTED / "llama" / name)
    command = [
        "use",
        "--model",
        str(folder / "model"),
        "--corpus",
        str(folder / "corpus.jsonl"),
        "--task",
        "column:A",
        "--task",
        "column:B",
        "--covariate",
        "column:C",
        "--behaviour",
        "next_token:answers=" + "|".join(f"answer0{k}" for k in range(4)),
        "--position",
        "subject",
        "--position",
        "query",
        "--sites",
        "resid.2",
        "--max-rows",
        "400",
        "--to",
        str(tmp_path / "to"),
        "--quiet",
        "--details",
    ]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    cells = json.loads((PLANTED / "llama" / "truth.json").read_text())["cells"]
    certified = {f"column:{c['property']} {c['site']}@{c['position']}": c["certified"] for c in cells}
    verdicts = read_use_run(tmp_path / "to").verdicts
    assert {f"{v.task} {v.place}": COARSE[certified[f"{v.task} {v.place}"]] for v in verdicts} == {
        f"{v.task} {v.place}": v.word.coarse for v in verdicts
    }
    assert [v.word.coarse for v in verdicts] == ["decodable only", "used", "decodable only", "decodable only"]
    for verdict in verdicts:
        assert verdict.evidence is not None and verdict.evidence.completeness > 0.8
        beside = [*(effect for _, effect in verdict.evidence.dose_curve), verdict.evidence.completeness]
        assert re.search(rf"^{verdict.place} +{'[ *]+'.join(decimal(x, 2) for x in beside)} ", found.output, re.M)
