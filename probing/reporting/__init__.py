"""Makes the report: tables, charts and findings in sentences, on one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from probing.errors import ConfigError, InputError
from probing.files.whole_files import write_atomically
from probing.reporting.across_models import across_models
from probing.reporting.findings import Finding, finding
from probing.reporting.grids import patching_map
from probing.reporting.page import Contents, rendered
from probing.reporting.plots import save_figures
from probing.reporting.tables import print_results
from probing.reporting.task_results import by_task
from probing.reporting.use_panels import unmatched, uses
from probing.reporting.use_tables import print_verdicts
from probing.results.analysis import AnalysisResult, Failure, read_analyses, read_failures
from probing.results.circuit import CircuitResult, read_circuit
from probing.results.dictionary_training import NAME as DICTIONARY
from probing.results.dictionary_training import read_training
from probing.results.latent_contexts import NAME as CONTEXTS
from probing.results.latent_contexts import read_contexts
from probing.results.lens import NAME as LENS
from probing.results.lens import LensResult, read_lens
from probing.results.patching import NAME as PATCHING
from probing.results.patching import read_patching
from probing.results.probe import ProbeResult, read_results
from probing.results.similarity import SimilarityResults
from probing.results.transfer import CrossResult, read_cross
from probing.system.machine import with_typed_errors
from probing.verdicts.judging import read_use_run
from probing.verdicts.verdict import UseRun

__all__ = ["Finding", "finding", "print_results", "print_verdicts", "report", "write_report"]

RESULTS = "results.jsonl"
ANALYSES = "analyses.jsonl"
USE = "use.jsonl"
PAGE = "report.html"
Result = TypeVar("Result")


@with_typed_errors
def report(results: Path | str | Iterable[ProbeResult], *, to: Path | str | None = None) -> Path:
    """Write the report of a directory of results, or of results in memory, and return the path of the page.

    Args:
        results: the directory into which one or more of `probing train`, `use`, `patch`, `transfer` and
            `similarity` wrote, or a collection of `ProbeResult`.
        to: the page's path (default: `report.html` in that directory, or in the current one). Figures for papers go
            into the folder `figures` beside it.

    Raises:
        ConfigError: there are no results.
        InputError: a file of results is damaged, or is missing although a table made from it exists.
    """
    if not isinstance(results, str | Path):
        return write_report(results, to if to is not None else PAGE, getattr(results, "analyses", ()))
    folder = Path(results)
    _check_whole(folder)
    tasks = by_task(
        read_results(path) if (path := folder / RESULTS).is_file() else [], read_analyses(folder / ANALYSES)
    )
    run = read_use_run(folder) if (folder / USE).is_file() else None
    found = Contents(
        tasks=tasks,
        across=across_models(tasks, folder),
        uses=uses(run),
        unmatched=unmatched(run),
        patching=[patching_map(one, title) for title, one in read_patching(folder).items()],
        transfer=read_cross(folder),
        failures=read_failures(folder),
        similarity=SimilarityResults.read(folder) if folder.is_dir() else SimilarityResults(()),
        lenses=lenses_in(folder),
        dictionary=read_training(folder),
        contexts=read_contexts(folder),
        circuits=circuits_in(folder),
    )
    if not found.has_results:
        raise _no_results(folder, "no such file" if not path.is_file() else "no results in it")
    return _written(found, to if to is not None else folder / PAGE)


def lenses_in(folder: Path) -> list[LensResult]:
    """Return the results of lenses in a folder; of a study of several models, those of each."""
    return _of_each_model(read_lens, folder, "lens")


def circuits_in(folder: Path) -> list[CircuitResult]:
    """Return the circuits in a folder; of a study of several models, those of each."""
    return _of_each_model(read_circuit, folder, "circuit")


def _of_each_model(read: Callable[[Path], Result | None], folder: Path, name: str) -> list[Result]:
    """Return the results of one kind in a folder, then those of the models of a study, in `folder/name/MODEL`."""
    places = [place for place in (folder, *sorted((folder / name).glob("*"))) if place.is_dir()]
    return [found for place in places if (found := read(place)) is not None]


def _check_whole(folder: Path) -> None:
    """Refuse a folder from which results are gone: a page of the rest would pass them over in silence."""
    if not (folder / USE).is_file() and (folder / "verdicts.parquet").is_file():
        raise InputError(
            "results of use are missing",
            needed=f"{USE}, of which verdicts.parquet was made",
            found="verdicts.parquet alone",
            where=str(folder),
            next_step=f"bring {USE} back, run the same `probing use` again, or remove verdicts.parquet",
        )
    table = folder / "results.parquet"
    if not table.is_file():
        return
    import pyarrow.parquet as pq

    told = set(pq.read_table(table, columns=["task"]).column("task").to_pylist())
    path = folder / RESULTS
    gone = told - {result.task for result in read_results(path)} if path.is_file() else told
    if gone:
        raise InputError(
            "results of probes are missing",
            needed=f"in {RESULTS} all tasks of results.parquet, which was made of it",
            found=f"none of {', '.join(sorted(gone)[:5])}",
            where=str(folder),
            next_step="run the same `probing train` again (what is done is kept), or remove results.parquet",
        )


def write_report(
    results: Iterable[ProbeResult],
    to: Path | str,
    analyses: Sequence[AnalysisResult] = (),
    *,
    failures: Sequence[Failure] = (),
    use: UseRun | None = None,
    transfer: Sequence[CrossResult] = (),
) -> Path:
    """Write the page of results and their figures, and return the path of the page.

    Args:
        results: results of probes.
        to: path of the page, or a directory in which `report.html` is written; figures go into the folder `figures`
            beside it.
        analyses: results of analyses of the same runs.
        failures: tasks that failed, which the page lists first.
        use: results of edits, shown beside the results of the same task, or alone.
        transfer: scores of probes on sources other than the training source.

    Raises:
        ConfigError: there are no results.
    """
    tasks = by_task(results, analyses)
    found = Contents(tasks, uses(use), (), transfer, failures, across_models(tasks), unmatched=unmatched(use))
    if not found.has_results:
        raise _no_results(Path("the results"), "none")
    return _written(found, to)


def _written(found: Contents, to: Path | str) -> Path:
    path = Path(to) / PAGE if Path(to).is_dir() else Path(to)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figures(found, path.parent / "figures")
    write_atomically(path, rendered(found))
    return path


def _no_results(folder: Path, found: str) -> ConfigError:
    next_step = "run `probing train … --to` or `probing use … --to` on that directory first"
    if any((folder / "units").glob("similarity-*")):
        found = "parts of a run of similarity that did not end"
        next_step = "run the same `probing similarity … --to` again (what is done is kept)"
    return ConfigError(
        "there are no results to report",
        needed=f"a directory with {RESULTS}, {USE}, {PATCHING}, similarity.jsonl, {LENS}, {DICTIONARY} or {CONTEXTS}",
        found=found,
        where=str(folder),
        next_step=next_step,
    )
