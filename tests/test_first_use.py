"""What a newcomer meets at the terminal: everything asked for is shown, and what makes a number doubtful is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from probing.cli import app
from probing.records import from_json
from tests.conftest import REFERENCE

MODEL = str(REFERENCE / "model")
SUBJECTS = ("painter", "teacher", "sailor", "farmer", "dancer", "doctor", "singer", "writer", "lawyer", "judge")
TIMES = {"past": ("formerly", "earlier", "once"), "present": ("nowadays", "now", "still")}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def template_rows(times: dict[str, tuple[str, ...]] = TIMES, places: tuple[str, ...] = ("near", "under")) -> list[str]:
    """`text,tense,form,subject` in minimal pairs of words that the reference model knows."""
    return [
        f"{time} the {noun}{plural} {place} the garden,{tense},{'plural' if plural else 'singular'},{noun}"
        for noun in SUBJECTS
        for place in places
        for plural in ("", "s")
        for tense, words in times.items()
        for time in words
    ]


def table(folder: Path, rows: list[str], name: str = "my.csv", header: str = "text,tense,form,subject") -> Path:
    file = folder / name
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def extracted(folder: Path, file: Path, *more: object) -> Path:
    result = run("extract", "--model", MODEL, "--corpus", file, "--rows", "sentence:mean", "--sites", "resid.2",
                 "--to", folder / "s", "--quiet", *more)  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder / "s"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    return extracted(folder, table(folder, template_rows()))


def trained(store: Path, to: Path, *more: object, file: Path | None = None) -> Result:
    return run("train", store, "--corpus", file or store.parent / "my.csv", "--to", to, "--quiet", *more)


def test_every_task_trained_is_printed_and_given_as_json(store: Path, tmp_path: Path) -> None:
    tasks = ("--task", "column:tense", "--task", "column:form")
    shown = trained(store, tmp_path / "r", *tasks)
    assert shown.exit_code == 0, shown.output
    assert "column:tense: accuracy" in shown.stdout and "column:form: accuracy" in shown.stdout
    lines = trained(store, tmp_path / "r", *tasks, "--json").stdout.splitlines()
    assert lines == (tmp_path / "r" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [from_json(line).task for line in lines] == ["column:tense"] * 2 + ["column:form"] * 2


def test_one_task_of_a_folder_prints_that_task_alone(store: Path, tmp_path: Path) -> None:
    trained(store, tmp_path / "r", "--task", "column:tense")
    lines = trained(store, tmp_path / "r", "--task", "column:form", "--json").stdout.splitlines()
    assert {json.loads(line)["task"] for line in lines} == {"column:form"}
