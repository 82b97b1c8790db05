"""The command `probing` with run, quickstart, compare and list; it ends with an exit code (`system/ending.py`)."""

from __future__ import annotations

import inspect
import json
import os
import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from probing import registry
from probing.cli.completion import add_completion, version_option
from probing.cli.dictionary_commands import dictionary_app
from probing.cli.direction_commands import direction_app, finish_apply
from probing.cli.job_commands import Details, Quiet, add_job_command
from probing.cli.once_only import OnceOnly
from probing.cli.output import (
    finish_ablate,
    finish_circuit,
    finish_cross,
    finish_extract,
    finish_import,
    finish_inspect,
    finish_lens,
    finish_patch,
    finish_plantbench,
    finish_report,
    finish_similarity,
    finish_study,
    finish_train,
)
from probing.cli.probe_commands import finish_score, probe_app
from probing.cli.store_commands import AsJson, path_argument, print_mapping, store_app
from probing.cli.use_output import finish_use
from probing.errors import DoubtfulData, OldName, ProbingWarning
from probing.reference import REFERENCE
from probing.system import stopping
from probing.system.ending import open_streams, silence_broken_streams, typed_ending
from probing.system.screen import console, say
from probing.system.supervising import supervised

_with_place = warnings.formatwarning
_PYTHON_SHOWS = warnings.showwarning


class _Group(TyperGroup):
    """A group of commands in which every error, interruption and refusal of the machine ends in one readable block and
    an exit code (`ending.py`).
    """

    def invoke(self, ctx: Any) -> Any:
        with typed_ending():
            return super().invoke(ctx)

    def main(self, *arguments: Any, **options: Any) -> Any:
        with typed_ending():
            return super().main(*arguments, **options)


app = typer.Typer(
    name="probing",
    cls=_Group,
    epilog="Example: probing quickstart",
    help="Ask what a language model's hidden states encode: extract states, train probes beside control tasks, report.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=version_option, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    """Ask what a language model's hidden states encode: extract states, train probes beside control tasks, report."""


app.add_typer(store_app, name="store")
app.add_typer(direction_app, name="direction")
app.add_typer(dictionary_app, name="dictionary")
app.add_typer(probe_app, name="probe")


@app.command(cls=OnceOnly)
def run(
    study: Annotated[Path, path_argument(help="study file (YAML)", metavar="STUDY.yaml", show_default=False)],
    to: Annotated[Path | None, typer.Option("--to", help="directory of results (default cache/results/NAME)")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    details: Details = False,
) -> None:
    """Run a whole study: extract states, train probes, measure use, write the report. What is done already is not done
    again.

    Examples: probing run study.yaml    probing run probing:reference --to cache/results/reference
    """
    page = finish_study(import_module("probing.jobs.study").Study.from_yaml(study), to, quiet, as_json, details)
    if not as_json:
        say(f"results: {page.parent / 'results.parquet'}\nreport: {page}")


@app.command(cls=OnceOnly)
def quickstart(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="directory of results")] = Path("probing-quickstart"),
    quiet: Quiet = False,
    as_json: AsJson = False,
    details: Details = False,
) -> None:
    """Run the study that ships with this package, of a small model for which it is known what it uses. It takes a
    minute or two and no network.

    Writes a page that shows what probes read, what controls say and what the model uses. If it is stopped, the same
    command continues.

    Examples: probing quickstart    probing quickstart --to results --quiet
    """
    os.environ.update(dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1"))
    # The model is so small that threads mostly wait for one another: four times as long where other work runs, too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    study = import_module("probing.jobs.study").Study.from_yaml(REFERENCE)
    page = finish_study(study, to, quiet, as_json, details)
    if not as_json:
        say(f"results: {page.parent / 'results.parquet'}\nOpen {page.resolve()} in a browser.")


@app.command(cls=OnceOnly)
def compare(
    results: Annotated[str, typer.Argument(help="directory that `probing train --to` wrote", metavar="RESULTS_DIR")],
    task: Annotated[str, typer.Option(help="task, as it was trained", show_default=False)],
    measure: Annotated[str | None, typer.Option(help="measure (default: accuracy, or r2)")] = None,
    probe: Annotated[str | None, typer.Option(help="only this probe (default: all)")] = None,
    split: Annotated[str, typer.Option(help="test or dev")] = "test",
    correction: Annotated[str, typer.Option(help="adjustment of p values over the pairs: holm or bh")] = "holm",
    model: Annotated[str | None, typer.Option(help="only this model, by its name or a part of it")] = None,
    between: Annotated[
        str, typer.Option(help="pairs: all; models (two models at one site); best (two models, each at its best site)")
    ] = "all",
    against: Annotated[str | None, typer.Option(help="compare models with this one, by a part of its name")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare every two sites, probes or models by their scores on one task, on the same rows and bootstrap resamples.

    Examples: probing compare cache/results/upos --task upos --measure accuracy --probe linear
    probing compare cache/results/two --task upos --between best
    """
    module = import_module("probing.training.comparing")
    pairs = module.compare(
        results,
        task=task,
        measure=measure,
        probe=probe,
        split=split,
        correction=correction,
        model=model,
        between=between,
        against=against,
    )
    if as_json:
        say(pairs.to_json(orient="records", lines=True, double_precision=15), nl=False)
    else:
        import_module("probing.reporting.tables").print_pairs(pairs.to_dict("records"), console())


@app.command("list", cls=OnceOnly)
def list_members(
    folder: Annotated[str, typer.Argument(help=f"kind to list (default: all): {', '.join(registry.FOLDERS)}")] = "",
    member: Annotated[str, typer.Argument(help="name of one probe, control, …, whose options are shown")] = "",
    as_json: AsJson = False,
) -> None:
    """List what options can name: all kinds (such as probes and controls), the members of one kind, or the options of
    one member.

    Examples: probing list    probing list probes    probing list probes mlp
    """
    if member:
        described = _described(folder, member)
        say(json.dumps(described) if as_json else f"{described['written']}\n\n{described['documentation']}")
        return
    rows = {name: _summary(folder, name) for name in registry.names(folder)} if folder else _folders()
    print_mapping(rows, as_json, verbatim=True)
    if folder == "controls" and not as_json:
        _print_objections()


def _folders() -> dict[str, str]:
    return {folder: ", ".join(registry.names(folder)) for folder in registry.FOLDERS}


def _described(folder: str, name: str) -> dict[str, str]:
    """Return how a member is written with the defaults of its options, and its documentation."""
    member = registry.get(folder, name).MEMBER
    options = [p for p in inspect.signature(member).parameters.values() if p.default is not p.empty]
    spec = name + ":" * bool(options) + ",".join(f"{p.name}={p.default}" for p in options)
    return {"written": spec, "documentation": inspect.getdoc(member) or ""}


def _print_objections() -> None:
    """Print which control answers which objection, for which levels of tasks."""
    say("\nan objection, the control that answers it, and the rows of the tasks for which it does:")
    members = {name: registry.get("controls", name).MEMBER for name in registry.names("controls")}
    answers = {f'"{one.answers}"': f"{name} ({', '.join(one.levels)})" for name, one in members.items()}
    print_mapping(answers, False, verbatim=True)


def _summary(folder: str, name: str) -> str:
    """Return the first sentence of a member's documentation, which may go over several lines."""
    module = registry.get(folder, name)
    paragraph = " ".join((module.__doc__ or inspect.getdoc(module.MEMBER) or "").strip().split("\n\n")[0].split())
    sentence = re.match(r".*?[.!?](?=\s+[^a-z\s]|$)", paragraph)
    return sentence[0] if sentence else paragraph


add_job_command(store_app, "import", "ImportJob", finish_import)
add_job_command(app, "extract", "ExtractJob", finish_extract)
add_job_command(app, "train", "TrainJob", finish_train, with_details=True)
add_job_command(app, "score", "ScoreJob", finish_score, home="probing.jobs.score")
add_job_command(app, "use", "UseJob", finish_use, home="probing.jobs.use", with_details=True)
add_job_command(direction_app, "apply", "ApplyDirectionJob", finish_apply, home="probing.jobs.direction")
add_job_command(app, "patch", "PatchJob", finish_patch, home="probing.jobs.patch")
add_job_command(app, "ablate", "AblateJob", finish_ablate, home="probing.jobs.patch")
add_job_command(app, "circuit", "CircuitJob", finish_circuit, home="probing.jobs.circuit", with_details=True)
add_job_command(app, "lens", "LensJob", finish_lens, home="probing.jobs.lens", with_details=True)
add_job_command(app, "inspect", "InspectJob", finish_inspect, home="probing.jobs.inspect", with_details=True)
add_job_command(app, "plantbench", "PlantbenchJob", finish_plantbench, home="probing.jobs.plantbench", with_json=False)
add_job_command(app, "report", "ReportJob", finish_report)
add_job_command(app, "transfer", "TransferJob", finish_cross, home="probing.jobs.cross", with_details=True)
add_job_command(app, "leave-one-out", "LeaveOneOutJob", finish_cross, home="probing.jobs.cross", with_details=True)
add_job_command(
    app, "similarity", "SimilarityJob", finish_similarity, home="probing.jobs.similarity", with_details=True
)
add_completion(app)


def _as_words(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning of this package as its words, and any other with its place in the code."""
    if issubclass(category, ProbingWarning):
        return f"warning: {message}\n"
    return _with_place(message, category, filename, lineno, line)


def main() -> None:
    """Run the command line `probing`."""
    stopping.listen()
    open_streams()
    warnings.formatwarning = _as_words
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", OldName)
    warnings.simplefilter("ignore", DoubtfulData)  # commands say it once, below their tables
    try:
        with typed_ending():
            supervised(_work)
    finally:
        stopping.over()
        silence_broken_streams()


def _work() -> None:
    stopping.watch()
    with typed_ending():
        app()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning of this package as a plain sentence, and others as Python shows them."""
    if issubclass(category, ProbingWarning):
        say(f"warning: {message}", err=True)
    else:
        _PYTHON_SHOWS(message, category, filename, lineno, file, line)
