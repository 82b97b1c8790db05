"""One bad task of many: the others are trained and reported, and the bad one is told with its reason."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from probing.cli.commands import app
from probing.errors import ConfigError
from probing.jobs.study import Study
from probing.results.analysis import read_failures, run_all
from probing.results.probe import read_results
from tests.conftest import REFERENCE

TRAIN = ("--sites", "resid.1", "--control", "word_type:draws=1", "--quiet")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, corpus_flags: list[str]) -> Path:
    place = tmp_path_factory.mktemp("states") / "small"
    assert run("extract", "--model", REFERENCE / "model", *corpus_flags, "--to", place, "--quiet").exit_code == 0
    return place


def study(
    folder: Path, files: dict[str, Path], train: str, extract: str = "{rows: 'word:mean', sites: resid.1}"
) -> Path:
    for file in files.values():
        shutil.copy(file, folder / file.name)
    corpus = ", ".join(f"{split}: {file.name}" for split, file in files.items())
    path = folder / "study.yaml"
    path.write_text(
        f"name: s\nmodel: {REFERENCE / 'model'}\ncorpus: {{{corpus}}}\nextract: [{extract}]\ntrain:\n{train}\n"
    )
    return path


def test_train_goes_on_after_a_bad_task_and_says_which_and_why(
    store: Path, corpus_flags: list[str], tmp_path: Path
) -> None:
    tasks = ("--task", "upos", "--task", "feature:Numbr", "--task", "column:lemma")
    result = run("train", store, *corpus_flags, *tasks, *TRAIN, "--to", tmp_path / "r")
    assert result.exit_code == 1
    assert re.search(r"^upos +\w", result.stdout, re.M) and re.search(r"^column:lemma +\w", result.stdout, re.M)
    assert result.stderr.startswith("UnitFailed: 1 of 3 tasks failed\n")
    assert "\nfeature:Numbr: " in result.stderr and "Traceback" not in result.output
    assert {r.task for r in read_results(tmp_path / "r" / "results.jsonl")} == {"upos", "column:lemma"}
    page = run("report", tmp_path / "r")
    assert page.exit_code == 0 and "warning: feature:Numbr failed" in page.stderr
    html = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "This report is not complete: 1 task failed." in html and "feature:Numbr" in html
    mended = run("train", store, *corpus_flags, "--task", "upos", *TRAIN, "--to", tmp_path / "r")
    assert mended.exit_code == 0 and read_failures(tmp_path / "r") == []


def test_the_error_of_a_single_task_is_its_own(store: Path, corpus_flags: list[str], tmp_path: Path) -> None:
    result = run("train", store, *corpus_flags, "--task", "uposs", "--to", tmp_path / "r")
    assert result.exit_code == 1 and result.stderr.startswith("UnknownName: ") and not (tmp_path / "r").exists()


def test_a_study_reports_what_succeeded_and_exits_1(small_corpus: dict[str, Path], tmp_path: Path) -> None:
    entries = "\n".join(
        f"  - {{task: {task}, probes: [prior], controls: ['{control}']}}"
        for task, control in [
            ("upos", "word_type:draws=1"),
            ("feature:Number", "keyed:key=nix"),
            ("upos", "keyed:key=nix"),
        ]
    )
    path = study(tmp_path, small_corpus, entries)
    result = run("run", path, "--to", tmp_path / "out", "--quiet")
    assert result.exit_code == 1, result.output
    assert "2 of 3 tasks failed" in result.stderr
    assert (
        "\nfeature:Number: UnknownName" in result.stderr and "\nupos (entry 3 of train): UnknownName" in result.stderr
    )
    assert re.search(r"^upos +no probe of states was scored", result.stdout, re.M)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "2 tasks failed" in html and "entry 3 of train" in html
    path.write_text(path.read_text().replace("nix", "lemma").replace("task: feature:Number", "task: sentence_length"))
    assert "sentence_length" in run("run", path, "--to", tmp_path / "out", "--quiet").stderr  # no rows of sentences


def test_a_study_s_untrained_model_is_the_twin_of_its_rows(small_corpus: dict[str, Path], tmp_path: Path) -> None:
    entry = "  - {task: upos, probes: [linear], controls: ['word_type:draws=1', untrained_model], executor: inline}"
    rows = "rows: 'word:mean', sites: resid.1"
    path = study(tmp_path, small_corpus, entry, f"{{{rows}}}, {{{rows}, untrained: 0}}, {{{rows}, untrained: 1}}")
    result = run("run", path, "--to", tmp_path / "out", "--quiet", "--details")
    assert result.exit_code == 0, result.output
    assert {f.name for f in (tmp_path / "out" / "states").iterdir()} == {
        "word-mean",
        "word-mean-untrained-0",
        "word-mean-untrained-1",
    }
    best = read_results(tmp_path / "out" / "results.jsonl")[-1]
    compared = {c.control: c.above for c in best.measure("accuracy").comparisons}
    assert compared == {
        "word_type": "",
        "untrained_model:seed=0": "the untrained twin",
        "untrained_model:seed=1": "the untrained twin",
    }
    assert "above the untrained twin" in result.stdout and "model" in best.provenance["model"]


def test_a_study_without_an_untrained_extraction_says_what_to_add(
    small_corpus: dict[str, Path], tmp_path: Path
) -> None:
    path = study(tmp_path, small_corpus, "  - {task: upos, probes: [linear], controls: [untrained_model]}")
    result = run("run", path, "--to", tmp_path / "out", "--quiet")
    assert result.exit_code == 1 and "untrained: 0" in result.stderr and result.stderr.startswith("ConfigError")


def test_two_extractions_of_the_same_rows_are_refused(small_corpus: dict[str, Path], tmp_path: Path) -> None:
    one = "{rows: 'word:mean', sites: resid.1}"
    path = study(tmp_path, small_corpus, "  - {task: upos}", f"{one}, {one}")
    with pytest.raises(ConfigError, match="two extractions of the same rows"):
        Study.from_yaml(path)


def test_what_keeps_every_task_from_being_trained_is_said_once(
    store: Path, corpus_flags: list[str], tmp_path: Path
) -> None:
    tasks = ("--task", "upos", "--task", "column:lemma")
    result = run("train", store, *corpus_flags, *tasks, *TRAIN, "--executor", "process", "--to", tmp_path / "r")
    assert result.exit_code == 1 and result.stderr.startswith("UnknownName: ")
    assert result.stderr.count("unknown executor") == 1 and "did you mean 'processes'" in result.stderr


def test_a_job_of_an_array_says_what_is_left_to_others(store: Path, corpus_flags: list[str], tmp_path: Path) -> None:
    flags = ("--task", "upos", *TRAIN, "--array-size", 2, "--to", tmp_path / "r", "--array-index")
    first = run("train", store, *corpus_flags, *flags, 0)
    assert first.exit_code == 0 and first.stdout == "" and "1 units of work are left to other processes" in first.stderr
    last = run("train", store, *corpus_flags, *flags, 1)
    assert re.search(r"^upos +\w", last.stdout, re.M) and (tmp_path / "r" / "results.jsonl").is_file()


def test_attempts_return_what_they_made_in_order(tmp_path: Path) -> None:
    assert run_all([("a", lambda: 1), ("b", lambda: 2)], tmp_path, "tasks") == [1, 2]
    assert list(tmp_path.iterdir()) == []
