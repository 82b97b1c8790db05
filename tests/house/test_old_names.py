"""What version 0.1 called otherwise still works, with a warning that names the new: modules, kinds, entry points,
options.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import probing
from probing import errors, registry
from probing._renamed import _MOVED, RENAMED, flag_of, old_names
from probing.cli.job_commands import add_job_command
from probing.contracts import executor
from probing.contracts.probe import Probe
from probing.errors import BadParameter, OldName, ProbingError, UnknownName
from probing.jobs import ExtractJob, Job, TrainJob
from probing.jobs.cross import LeaveOneOutJob, TransferJob
from probing.jobs.patch import AblateJob, PatchJob
from probing.jobs.study import Study, StudyTrain, StudyUse
from probing.jobs.use import UseJob
from probing.plantbench.folders import read_case
from probing.probes.prior import PriorProbe
from probing.results.use import _STORED, EditEffect, stored_cell
from probing.tasks.upos import Upos
from probing.text.corpus import Corpus
from probing.use.patching.prompt_pairs import patch_pairs
from tests.conftest import ROOT

JOBS = (ExtractJob, TrainJob, TransferJob, LeaveOneOutJob, UseJob, PatchJob, AblateJob)
IN_STUDIES = {"train": StudyTrain, "use": StudyUse}
VALUES = {
    "resample_by": "document",
    "save_directions": True,
    "no_attribution": True,
    "run_prompt": "clean",
    "max_memory_mib": 64,
    "array_size": 3,
    "minimal_pairs": "twin",
    "array_index": 1,
}
STUDY = """
name: small
model: model
corpus: {train: a.jsonl}
extract: {rows: "word:mean"}
train: {task: upos}
use: {task: "column:A", behaviour: next_token}
"""
FUNCTIONS = [
    function
    for function in [*(getattr(probing, name) for name in probing.__all__), patch_pairs, read_case]
    if inspect.isfunction(function) and set(RENAMED.values()) & set(inspect.signature(function).parameters)
]


def pairs_of(known: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted(old_names(known).items())


OF_JOBS = [(job, *pair) for job in JOBS for pair in pairs_of(job.model_fields)]
OF_STUDIES = [(part, *pair) for part, job in IN_STUDIES.items() for pair in pairs_of(job.model_fields)]
OF_FUNCTIONS = [(f, *pair) for f in FUNCTIONS for pair in pairs_of(dict(inspect.signature(f).parameters))]


def warned(call: Callable[[], Any], *says: str) -> Any:
    """Return what a call gives, after exactly one warning, which says all of this."""
    with pytest.warns(OldName) as caught:
        given = call()
    assert len(caught) == 1 and caught[0].filename == __file__, [str(one.message) for one in caught]
    for part in says:
        assert part in str(caught[0].message)
    return given


def required(job: type[Job]) -> dict[str, Any]:
    return {
        name: ["a=b"] if name == "sources" else "a" for name, field in job.model_fields.items() if field.is_required()
    }


def parsed(job: type[Job], *options: object) -> Job:
    """Return the job of a command line."""
    app, jobs, command = typer.Typer(), list[Job](), job.__name__
    add_job_command(app, command, command, lambda made, quiet, as_json: jobs.append(made), home=job.__module__)
    app.callback()(lambda: None)
    line = [command]
    for name, value in required(job).items():
        field = job.model_fields[name]
        is_argument = (field.json_schema_extra or {}).get("argument")
        line += ([] if is_argument else [flag_of(name, field)]) + [value if isinstance(value, str) else value[0]]
    done = CliRunner().invoke(app, [*line, *map(str, options)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return jobs[0]


def given(flag: str, value: object) -> tuple[object, ...]:
    return (flag,) if value is True else (flag, value)


def test_every_old_name_is_looked_at() -> None:
    assert {old for _, old, _ in OF_JOBS} == set(RENAMED)
    assert {old for _, old, _ in OF_STUDIES} == {"cluster", "directions", "memory", "twins"}
    assert {old for _, old, _ in OF_FUNCTIONS} == set(RENAMED) - {"directions", "exact_only"}  # of commands alone


@pytest.mark.parametrize(("job", "old", "new"), OF_JOBS)
def test_a_job_takes_an_option_by_its_old_name(job: type[Job], old: str, new: str) -> None:
    value, rest = VALUES[new], required(job)
    now = job(**rest, **{new: value})
    assert warned(lambda: job(**rest, **{old: value}), f"`{old}` is now `{new}`") == now
    assert warned(lambda: job.read(rest | {old: value}, "here"), f"`{old}` is now `{new}`") == now
    with pytest.raises(BadParameter, match="two names of one option"):
        job.read(rest | {old: value, new: value}, "here")


@pytest.mark.parametrize(("job", "old", "new"), OF_JOBS)
def test_a_command_takes_an_option_by_its_old_flag(
    job: type[Job], old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value, flag, old_flag = VALUES[new], flag_of(new, job.model_fields[new]), flag_of(old)
    now = parsed(job, *given(flag, value))
    assert getattr(now, new) == value
    with pytest.warns(OldName, match=f"^{old_flag} is now {flag}: ") as caught:
        assert parsed(job, *given(old_flag, value)) == now
    assert len(caught) == 1
    with pytest.raises(BadParameter, match=f"{old_flag} and {flag} are two names"):
        parsed(job, *given(old_flag, value), *given(flag, value))


@pytest.mark.parametrize(("part", "old", "new"), OF_STUDIES)
def test_a_study_takes_an_option_by_its_old_key(part: str, old: str, new: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"

    def study(*names: str) -> Study:
        options = "".join(f"{name}: {str(VALUES[new]).lower()}, " for name in names)
        entry = f"{part}: {{"
        file.write_text(STUDY.replace(entry, f"{entry}{options}"), encoding="utf-8")
        return Study.from_yaml(file)

    now = study(new)
    assert warned(lambda: study(old), f"`{old}` is now `{new}`") == now
    with pytest.raises(BadParameter, match="two names of one option") as caught:
        study(old, new)
    assert caught.value.where == str(file)


@pytest.mark.parametrize(("function", "old", "new"), OF_FUNCTIONS)
def test_a_function_takes_a_keyword_by_its_old_name(function: Callable[..., Any], old: str, new: str) -> None:
    """Of a call that lacks what is required, whose error does not come before the keywords are read."""

    def ending(**options: Any) -> str:
        with pytest.raises(TypeError) as caught:
            function(**options)
        return str(caught.value)

    assert "missing" in ending(**{new: VALUES[new]})
    assert warned(lambda: ending(**{old: VALUES[new]}), f"`{old}` is now `{new}`") == ending(**{new: VALUES[new]})
    with pytest.raises(BadParameter, match="two names of one option"):
        function(**{old: VALUES[new], new: VALUES[new]})


@pytest.mark.parametrize("job", JOBS)
def test_help_shows_new_flags_alone(job: type[Job]) -> None:
    app = typer.Typer()
    add_job_command(app, "it", job.__name__, lambda *_: None, home=job.__module__)
    app.callback()(lambda: None)
    shown = CliRunner().invoke(app, ["it", "--help"], env={"COLUMNS": "200"}).output
    for old, new in pairs_of(job.model_fields):
        assert f"{flag_of(new, job.model_fields[new])} " in shown and f"{flag_of(old)} " not in shown


def test_the_value_of_an_old_keyword_arrives() -> None:
    with pytest.warns(OldName), pytest.raises(BadParameter, match=r"needed: 0 to 1\n  found: 5"):
        probing.extract("model", Corpus(()), to="nowhere", num_workers=2, worker_index=5)


@pytest.mark.parametrize(("new", "old"), _STORED.items())
def test_a_number_of_an_edit_is_read_by_its_old_name_and_stored_under_it(new: str, old: str) -> None:
    names = [field.name for field in dataclasses.fields(EditEffect)]
    edit = EditEffect(**{name: float(number) for number, name in enumerate(names)})
    assert warned(lambda: getattr(edit, old), f"`{old}` of EditEffect is now `{new}`") == getattr(edit, new)
    cell = stored_cell({"subspace": dataclasses.asdict(edit), "joint": None, "dose": 1.0})
    assert cell["subspace"][old] == getattr(edit, new) and new not in cell["subspace"] and cell["joint"] is None


def test_a_probe_of_before_works_on() -> None:
    written = {"reads": "type", "reads_names": True, "readings": ("pair",), "reads_pairs": True, "reads_blocks": True}
    assert set(written) == set(Probe._before)
    for old, value in written.items():
        new = Probe._before[old]
        mine = warned(lambda: type("Mine", (PriorProbe,), {old: value}), f"`{old}` of Mine is now `{new}`")  # noqa: B023
        assert getattr(mine, new) == getattr(mine(), new) == value
        below = type("Below", (mine,), {})
        assert warned(lambda: getattr(below(), old), f"`{old}` of Below") == value  # noqa: B023
        for_either_version = {old: value, new: getattr(PriorProbe, new)}
        both = type("Both", (PriorProbe,), for_either_version)
        assert getattr(both, new) == getattr(PriorProbe, new)


def test_the_place_of_a_worker_is_found_by_its_old_name() -> None:
    assert warned(lambda: executor.Place, "`WorkerSlot`") is executor.WorkerSlot
    with pytest.raises(AttributeError, match="nosuch"):
        executor.nosuch  # noqa: B018


def test_a_task_of_before_works_on() -> None:
    mine = warned(lambda: type("Mine", (Upos,), {"reading": "mean"}), "`reading` of Mine is now `row_form`")
    assert mine().row_form == "mean"
    task = Upos()
    warned(lambda: setattr(task, "reading", "ends"), "`reading` of Upos is now `row_form`")
    assert task.row_form == warned(lambda: task.reading) == "ends"


def test_the_command_line_warns_in_one_line(tmp_path: Path, warm: list[str]) -> None:
    line = ["patch", "--model", "m", "--pairs", "none.csv", "--to", str(tmp_path), "--into", "clean"]
    done = subprocess.run([*warm, "-m", "probing", *line], cwd=ROOT, capture_output=True, text=True, check=False)
    first, second = done.stderr.splitlines()[:2]
    assert first == "warning: --into is now --run: the old name works until version 0.3"
    assert second.startswith("CorpusError"), done.stderr


@pytest.mark.parametrize("old", sorted(_MOVED))
def test_a_module_is_found_by_its_old_name(old: str) -> None:
    new = f"probing.{_MOVED[old]}"
    sys.modules.pop(f"probing.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"probing\.{old} is now {new}"):
        found = importlib.import_module(f"probing.{old}")
    assert found is importlib.import_module(new)
    above, _, child = new.rpartition(".")
    assert getattr(importlib.import_module(above), child) is found  # the old name did not take another's place
    _, _, old_child = old.rpartition(".")
    taken = f"{importlib.import_module(f'probing.{old}'.rpartition('.')[0]).__name__}.{old_child}"
    assert sys.modules.get(taken, found) is getattr(importlib.import_module(taken.rpartition(".")[0]), old_child)


def test_patching_is_found_by_its_old_name_and_its_folder_stays_what_it_is() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = importlib.import_module("probing.intervening.patching")
    new = importlib.import_module("probing.use.patching")
    assert old is new and importlib.import_module("probing.use").patching is new
    assert new.patch is importlib.import_module("probing.use.patching.patching").patch
    assert importlib.import_module("probing.use.patching.prompt_pairs") is new.prompt_pairs


def test_a_file_of_a_moved_folder_is_no_second_copy() -> None:
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from probing.corpora.jsonl import MEMBER as old\nfrom probing.store import Store\n"
        "from probing.readers.jsonl import MEMBER as new\nimport probing.states.store\nimport probing as pb\n"
        "assert old is new and Store is pb.Store"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_readers_are_found_by_their_old_kind() -> None:
    with pytest.warns(DeprecationWarning, match="`corpora` are called `readers` now"):
        assert registry.names("corpora") == registry.names("readers")
    with pytest.warns(DeprecationWarning, match="`corpora` are called `readers` now"):
        assert registry.get("corpora", "jsonl") is registry.get("readers", "jsonl")


def installed(name: str, group: str, where: Path) -> None:
    """A package with one member, as pip leaves it."""
    folder = where / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{group}]\n{name} = probing.readers.jsonl\n")


def test_members_of_packages_are_found_by_both_groups_and_while_this_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not {"mine", "theirs"} & set(registry.names("readers"))
    installed("mine", "probing.readers", tmp_path)
    assert "mine" in registry.names("readers")
    assert registry.get("readers", "mine") is registry.get("readers", "jsonl")
    installed("theirs", "probing.corpora", tmp_path)
    with pytest.warns(DeprecationWarning, match=r"entry-point group `probing\.corpora` is called"):
        assert {"mine", "theirs"} <= set(registry.names("readers"))
    monkeypatch.undo()
    assert not {"mine", "theirs"} & set(registry.names("readers"))


@pytest.mark.parametrize("name", ["DidNotConverge", "FitError"])
def test_errors_that_were_never_raised_can_still_be_caught_and_catch_nothing(name: str) -> None:
    with pytest.warns(OldName, match=f"{name} is never raised"):
        old = getattr(errors, name)
    assert issubclass(old, ProbingError) and not issubclass(UnknownName, old)
