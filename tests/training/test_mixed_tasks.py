"""Laws of a list of tasks of several kinds, and of options that are given twice."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from probing.cli.commands import app
from probing.cli.once_only import OnceOnly
from probing.errors import NotForThisTask, UnknownName
from probing.results.probe import read_results
from probing.text.corpus import Corpus, Example
from probing.training.build import fitting
from tests.conftest import REFERENCE

KINDS = {"column:c": "classes", "column:r": "real", "column:l": "labels"}


@dataclass
class Asked:
    tasks: list[str] = field(default_factory=lambda: list(KINDS))
    probes: list[str] = field(default_factory=list)
    measures: list[str] = field(default_factory=list)
    analyses: list[str] = field(default_factory=list)


def columns(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    return {"c": rng.choice("ab"), "r": rng.random(), "l": rng.choice(['["a", "b"]', '["a"]', "[]"])}


CORPUS = Corpus(tuple(Example(str(i), f"a {i}", ((0, 1),), columns(i)) for i in range(50)))


@pytest.mark.parametrize(
    ("task", "asked", "wanted"),
    [
        ("column:c", Asked(probes=["linear"]), {"probes": ["linear"]}),
        ("column:r", Asked(probes=["linear"]), {"probes": ["ridge"]}),
        ("column:l", Asked(probes=["ridge", "linear"]), {"probes": ["linear"]}),
        ("column:c", Asked(probes=["ridge", "mlp:hidden=8"]), {"probes": ["mlp:hidden=8", "linear"]}),
        ("column:r", Asked(probes=["mlp:hidden=8", "ridge"]), {"probes": ["mlp:hidden=8", "ridge"]}),
        ("column:c", Asked(probes=["bilinear"]), {"probes": ["linear"]}),
        ("column:r", Asked(measures=["accuracy"]), {"measures": ["r2", "spearman"]}),
        ("column:c", Asked(measures=["r2", "macro_f1"]), {"measures": ["macro_f1", "accuracy", "log_loss"]}),
        ("column:r", Asked(analyses=["information"]), {"analyses": []}),
        ("column:r", Asked(), {"probes": None, "measures": None}),
        ("column:r", Asked(tasks=["column:r"], probes=["linear"]), {"probes": ["linear"]}),
    ],
)
def test_of_several_tasks_each_gets_the_defaults_of_its_kind_for_what_it_cannot_use(
    task: str, asked: Asked, wanted: dict[str, Any]
) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = fitting(task, CORPUS, asked)
    assert {name: found[name] for name in wanted} == wanted
    given = asked.probes + asked.measures + asked.analyses
    missing = [one for one in given if one not in [name for names in found.values() for name in names or []]]
    assert [w.category for w in heard] == [NotForThisTask] * bool(missing)
    assert all(one in str(heard[0].message) for one in missing)


def test_an_unknown_member_is_no_other_kind() -> None:
    with pytest.raises(UnknownName, match="linear"):
        fitting("column:r", CORPUS, Asked(probes=["linaer"]))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("mixed")
    texts = [json.loads(line)["text"] for line in (REFERENCE / "train.jsonl").read_text().splitlines()[:90]]
    rows = [{"text": text, **columns(number)} for number, text in enumerate(texts)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(
        "extract",
        "--model",
        REFERENCE / "model",
        "--corpus",
        folder / "a.jsonl",
        "--rows",
        "sentence:mean",
        "--sites",
        "embed",
        "--to",
        folder / "states",
        "--quiet",
    )
    assert result.exit_code == 0
    return folder / "a.jsonl", folder / "states"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("probes", [(), ("--probe", "linear")])
def test_one_command_trains_tasks_of_all_kinds(mixed: tuple[Path, Path], tmp_path: Path, probes: Any) -> None:
    corpus, store = mixed
    tasks = [flag for task in KINDS for flag in ("--task", task)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotForThisTask)
        result = run(
            "train",
            store,
            "--corpus",
            corpus,
            *tasks,
            *probes,
            "--control",
            "shuffled_labels:draws=1",
            "--to",
            tmp_path / "r",
            "--quiet",
        )
    assert result.exit_code == 0, result.output
    found = {(r.task, r.probe) for r in read_results(tmp_path / "r" / "results.jsonl") if r.site == "embed"}
    assert found == {("column:c", "linear"), ("column:r", "ridge"), ("column:l", "linear")}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


EVERY = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_option_that_takes_one_value_is_refused_twice(path: tuple[str, ...]) -> None:
    assert isinstance(EVERY[path], OnceOnly)
    build = getattr(EVERY[path].callback, "build", None)
    app_of_one = typer.Typer(add_completion=False)
    app_of_one.command(cls=OnceOnly)(build() if build else EVERY[path].callback)
    options = [p for p in typer.main.get_command(app_of_one).params if p.param_type_name == "option" and not p.is_flag]
    for option in [one for one in options if not one.multiple]:
        result = run(*path, option.opts[0], "1", option.opts[0], "2")
        assert result.exit_code == 2 and f"{option.opts[0]} is given 2 times" in " ".join(result.output.split())
    for option in [one for one in options if one.multiple]:
        arguments = [option.opts[0], "1", option.opts[0], "2"]
        typer.main.get_command(app_of_one).make_context("x", arguments, resilient_parsing=True)
