"""The command line: flags to jobs, records to the screen, errors to exit codes. Nothing else prints.

Exit codes: 0 done, 1 a ProbingError or an interruption, printed as one block, 2 wrong usage, 75 stopped by SIGTERM or
SIGUSR1, as a batch system sends them: start the same command again.
"""

from __future__ import annotations

import errno
import inspect
import json
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from probing import registry, showing
from probing.errors import DiskFull, Interrupted, ProbingError, ProbingWarning, UnitFailed
from probing.job_commands import Quiet, add_job_command
from probing.once_only import OnceOnly
from probing.showing import (
    finish_ablate,
    finish_cross,
    finish_extract,
    finish_patch,
    finish_plantbench,
    finish_report,
    finish_train,
    finish_use,
    show,
    written,
)
from probing.store_commands import AsJson, print_mapping, store_app

REQUEUE = 75
_with_place = warnings.formatwarning
_SHOWN = 20
_PYTHON_SHOWS = warnings.showwarning
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Group(TyperGroup):
    """Turns every ProbingError, interruption and full disk into one readable block and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ProbingError as error:
            _fail(error)
        except _Requeue:
            typer.echo("stopped by a signal; the same command goes on from here: what is done is kept", err=True)
            sys.exit(REQUEUE)
        except KeyboardInterrupt:
            _fail(Interrupted("interrupted", next_step="run the same command again: what is done is kept"))
        except MemoryError:
            _fail(ProbingError("not enough memory", next_step="free some, and run the same command again"))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            _fail(DiskFull("no room left on the disk", found=str(error), next_step="free some space and run again"))


def _fail(error: ProbingError) -> NoReturn:
    typer.echo(_block(error), err=True)
    for name, cause in _causes(error)[:_SHOWN]:
        typer.echo(f"\n{name}: {_block(cause)}", err=True)
    sys.exit(1)


def _block(error: ProbingError) -> str:
    notes = "".join(f"\n  note: {note}" for note in getattr(error, "__notes__", []))
    return f"{type(error).__name__}: {error}{notes}"


def _causes(error: ProbingError, within: str = "") -> list[tuple[str, ProbingError]]:
    """What failed and why, down to the errors that are of one thing each."""
    if not isinstance(error, UnitFailed):
        return []
    named = [(f"{within}{name}", cause) for name, cause in error.errors.items()]
    return [leaf for name, cause in named for leaf in (_causes(cause, f"{name}, ") or [(name, cause)])]


app = typer.Typer(
    name="probing",
    cls=_Group,
    epilog="Example: probing run datasets/reference/study.yaml --to cache/results/reference",
    help="Ask what a language model's hidden states encode: extract states, train probes beside control tasks, report.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")


@app.command(cls=OnceOnly)
def run(
    study: Annotated[Path, typer.Argument(help="study file (YAML)", metavar="STUDY.yaml", show_default=False)],
    to: Annotated[Path | None, typer.Option("--to", help="directory of results (default cache/results/NAME)")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a whole study: extract, train, report. Whatever is done already is not done again.

    Example: probing run datasets/reference/study.yaml --to cache/results/reference
    """
    job = import_module("probing.study").Study.from_yaml(study)
    try:
        page = job.run(to, progress=not quiet)
    except UnitFailed as failure:
        show(written(job.folder(to), None, failure), as_json)
        raise
    show(import_module("probing.training.results").ProbeResults.read(page.parent), as_json)
    if job.use:
        showing.show_use(page.parent, job.certified(), as_json)
    if not as_json:
        typer.echo(f"results: {page.parent / 'results.parquet'}\nreport: {page}")


@app.command(cls=OnceOnly)
def compare(
    results: Annotated[str, typer.Argument(help="directory that `probing train --to` wrote", metavar="RESULTS_DIR")],
    task: Annotated[str, typer.Option(help="task, as it was trained", show_default=False)],
    measure: Annotated[str | None, typer.Option(help="measure (default: accuracy, or r2)")] = None,
    probe: Annotated[str | None, typer.Option(help="only this probe (default: all)")] = None,
    split: Annotated[str, typer.Option(help="test or dev")] = "test",
    correction: Annotated[str, typer.Option(help="adjustment of p over the pairs: holm or bh")] = "holm",
    model: Annotated[str | None, typer.Option(help="only this model, by its name or a part of it")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the sites and probes of one task pair by pair, on the same rows and resamples.

    Example: probing compare cache/results/upos --task upos --measure accuracy --probe linear
    """
    from rich.console import Console

    module = import_module("probing.training.comparing")
    pairs = module.compare(
        results, task=task, measure=measure, probe=probe, split=split, correction=correction, model=model
    )  # fmt: skip
    if as_json:
        typer.echo(pairs.to_json(orient="records", lines=True, double_precision=15), nl=False)
    else:
        import_module("probing.reporting.tables").print_pairs(pairs.to_dict("records"), Console())


@app.command("list", cls=OnceOnly)
def list_members(
    folder: Annotated[str, typer.Argument(help=f"one of: {', '.join(registry.FOLDERS)}; none: all of them")] = "",
    member: Annotated[str, typer.Argument(help="a member: its options and their meaning")] = "",
    as_json: AsJson = False,
) -> None:
    """List what can be named: the extension folders, the members of one, or the options of one member.

    Examples: probing list    probing list probes    probing list probes mlp
    """
    if member:
        described = _described(folder, member)
        typer.echo(json.dumps(described) if as_json else f"{described['written']}\n\n{described['documentation']}")
        return
    rows = {name: _summary(folder, name) for name in registry.names(folder)} if folder else _folders()
    print_mapping(rows, as_json, verbatim=True)
    if folder == "controls" and not as_json:
        _print_objections()


def _folders() -> dict[str, str]:
    return {folder: ", ".join(registry.names(folder)) for folder in registry.FOLDERS}


def _described(folder: str, name: str) -> dict[str, str]:
    """How a member is written with its options as they are by default, and its documentation."""
    member = registry.get(folder, name).MEMBER
    options = [p for p in inspect.signature(member).parameters.values() if p.default is not p.empty]
    spec = name + ":" * bool(options) + ",".join(f"{p.name}={p.default}" for p in options)
    return {"written": spec, "documentation": inspect.getdoc(member) or ""}


def _print_objections() -> None:
    """Which control answers which objection, for which levels of tasks."""
    typer.echo("\nan objection, the control that answers it, and the rows of the tasks for which it does:")
    members = {name: registry.get("controls", name).MEMBER for name in registry.names("controls")}
    answers = {f'"{one.answers}"': f"{name} ({', '.join(one.levels)})" for name, one in members.items()}
    print_mapping(answers, False, verbatim=True)


def _summary(folder: str, name: str) -> str:
    return (registry.get(folder, name).__doc__ or "").strip().splitlines()[0]


add_job_command(store_app, "import", "ImportJob", finish_extract)
add_job_command(app, "extract", "ExtractJob", finish_extract)
add_job_command(app, "train", "TrainJob", finish_train)
add_job_command(app, "use", "UseJob", finish_use, home="probing.use_jobs")
add_job_command(app, "patch", "PatchJob", finish_patch, home="probing.patch_jobs")
add_job_command(app, "ablate", "AblateJob", finish_ablate, home="probing.patch_jobs")
add_job_command(app, "plantbench", "PlantbenchJob", finish_plantbench, home="probing.plantbench_jobs", with_json=False)
add_job_command(app, "report", "ReportJob", finish_report)
add_job_command(app, "transfer", "TransferJob", finish_cross, home="probing.cross_jobs")
add_job_command(app, "leave-one-out", "LeaveOneOutJob", finish_cross, home="probing.cross_jobs")


class _Interrupt(KeyboardInterrupt):
    """Ctrl-C. Not KeyboardInterrupt itself: where that passes through an `exec` of text (every dataclass is made by
    one), the interpreter ends by the signal and not with our exit code, however well it was caught.
    """


def _interrupt(*_: object) -> NoReturn:
    raise _Interrupt


class _Requeue(BaseException):
    """A batch system ends this job before it is done."""


def _requeue(*_: object) -> NoReturn:
    raise _Requeue


def _as_words(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours as its words; any other with its place in the code."""
    if issubclass(category, ProbingWarning):
        return f"warning: {message}\n"
    return _with_place(message, category, filename, lineno, line)


def main() -> None:
    """Entry point of the command `probing`."""
    warnings.formatwarning = _as_words
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _requeue)
    warnings.showwarning = _show_warning
    app()


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """A warning of ours as a plain sentence, others as Python shows them."""
    if issubclass(category, ProbingWarning):
        typer.echo(f"warning: {message}", err=True)
    else:
        _PYTHON_SHOWS(message, category, filename, lineno, file, line)
