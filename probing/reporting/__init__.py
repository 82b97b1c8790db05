"""Tables, figures, findings and the self-contained HTML report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from probing.errors import ConfigError
from probing.files.whole_files import write_atomically
from probing.reporting.figures import save_curves, save_use_curves
from probing.reporting.findings import Finding, finding
from probing.reporting.heat_map import HeatMap, patching_map, save_heat_map
from probing.reporting.html import page
from probing.reporting.tables import print_results
from probing.reporting.use_tables import print_verdicts
from probing.results.analysis import AnalysisResult, read_analyses
from probing.results.failures import Failure, read_failures
from probing.results.patching import NAME as PATCHING
from probing.results.patching import read_patching
from probing.results.probe import ProbeResult, read_results
from probing.system.machine import with_typed_errors
from probing.verdicts.judging import read_use_run
from probing.verdicts.use_run import UseRun

__all__ = ["Finding", "finding", "print_results", "print_verdicts", "report", "save_curves", "write_report"]

RESULTS = "results.jsonl"
ANALYSES = "analyses.jsonl"
USE = "use.jsonl"
PAGE = "report.html"


@with_typed_errors
def report(results: Path | str | Iterable[ProbeResult], *, to: Path | str | None = None) -> Path:
    """Write the report on a directory of results, or on results in memory, and return the path of the page.

    Args:
        results: the directory that `probing train --to` or `probing use --to` (or both) wrote, or results.
        to: the page's path (default: `report.html` in that directory, or in the current one). Figures for papers go
            into the folder `figures` beside it.

    Raises:
        ConfigError: there are no results.
        InputError: `results.jsonl` or `use.jsonl` is damaged.
    """
    if isinstance(results, str | Path):
        folder = Path(results)
        place, analyses = to if to is not None else folder / PAGE, read_analyses(folder / ANALYSES)
        use = read_use_run(folder) if (folder / USE).is_file() else None
        maps = [patching_map(found, title) for title, found in read_patching(folder).items()]
        return write_report(
            _read(folder, anything=use is not None or bool(maps)),
            place,
            analyses,
            failures=read_failures(folder),
            use=use,
            maps=maps,
        )
    return write_report(results, to if to is not None else PAGE, getattr(results, "analyses", ()))


def write_report(
    results: Iterable[ProbeResult],
    to: Path | str,
    analyses: Sequence[AnalysisResult] = (),
    *,
    failures: Sequence[Failure] = (),
    use: UseRun | None = None,
    maps: Sequence[HeatMap] = (),
) -> Path:
    """Write the page of `results` at `to` (in it, if it is a directory) and their figures beside it.

    `failures` lists what failed and is shown first; `use` holds the effects of edits, shown beside the results of the
    same task or alone; `maps` holds heat maps of patching.

    Raises:
        ConfigError: there are no results.
    """
    listed = list(results)
    if not listed and use is None and not maps:
        raise _no_results("the results", "none")
    path = Path(to) / PAGE if Path(to).is_dir() else Path(to)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_curves(listed, path.parent / "figures", analyses)
    save_use_curves(use, path.parent / "figures")
    for chart in maps:
        save_heat_map(chart, path.parent / "figures")
    write_atomically(path, page(listed, analyses, failures, use, maps))
    return path


def _read(folder: Path, *, anything: bool) -> list[ProbeResult]:
    path = folder / RESULTS
    if not path.is_file() and not anything:
        raise _no_results(str(path), "no such file")
    return read_results(path) if path.is_file() else []


def _no_results(where: str, found: str) -> ConfigError:
    return ConfigError(
        "there are no results to report",
        needed=f"a directory with {RESULTS}, {USE} or {PATCHING}",
        found=found,
        where=where,
        next_step="run `probing train … --to` or `probing use … --to` on that directory first",
    )
