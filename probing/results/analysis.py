"""Defines `AnalysisResult`, the result of an analysis at one site, and `Point`, one of its numbers; reads and writes
them as JSON lines and as one long table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from probing.errors import DiskFull, ProbingError, UnitFailed
from probing.files.fact_shapes import check_shapes
from probing.files.whole_files import write_atomically
from probing.results.probe import read_lines

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Point:
    """Holds a number that an analysis returns.

    Attributes:
        quantity: name of the quantity, such as `code_length` or `accuracy`.
        value: the number.
        low, high: bounds of its 95 % interval; None if it has none.
        unit: unit of the number, such as `bits` or `fraction`.
        control: name of the control whose labels or states it was measured on; "" for the task itself.
        draw: number of the control's random draw, from 0 on; -1 for the task or for a mean over draws.
        x: value on the x axis of a curve; None if the number is not on a curve.
        x_name: what the x axis shows, such as `rows` or `rank`; "" if there is none.
        label: further text that identifies the number, such as the name of a coordinate.
    """

    quantity: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    control: str = ""
    draw: int = -1
    x: float | None = None
    x_name: str = ""
    label: str = ""


@dataclass(frozen=True)
class AnalysisResult:
    """Holds the result of one analysis of one probe at one site on one task.

    Attributes:
        analysis: name of the analysis with its options.
        task, site: names of the task and of the site.
        probe: name of the probe with its options.
        points: the numbers, in the order in which they are reported.
        settings: settings of the run, by name, that affect the numbers and are not options of the analysis.
        provenance: see `ProbeResult`.
    """

    analysis: str
    task: str
    site: str
    probe: str
    points: tuple[Point, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def of(self, quantity: str, *, control: str | None = "") -> tuple[Point, ...]:
        """Return the numbers of one quantity, such as `accuracy`: by default those of the task; with the name of a
        control as `control`, those of that control; with None, all.
        """
        return tuple(p for p in self.points if p.quantity == quantity and control in (None, p.control))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of a long table, one dict per number (`Point`)."""
        head = {"analysis": self.analysis, "task": self.task, "site": self.site, "probe": self.probe}
        tail = {name: self.provenance.get(name) for name in ("store_id", "model", "run")}
        return [head | asdict(point) | tail for point in self.points]


def to_json(result: AnalysisResult) -> str:
    """Return a result as one JSON line with sorted keys."""
    return json.dumps(asdict(result), sort_keys=True, allow_nan=False)


def from_json(line: str) -> AnalysisResult:
    """Return the result that `to_json` wrote.

    Raises:
        ValueError: the text is not such a result.
    """
    result = _reader().validate_json(line)
    check_shapes({}, result.provenance)
    return result


@cache
def _reader() -> TypeAdapter[AnalysisResult]:
    return TypeAdapter(AnalysisResult)


def read_analyses(path: Path) -> list[AnalysisResult]:
    """Return all results in a JSON-lines file, or none if there is no file.

    Raises:
        InputError: a line is not a result; the message gives its number.
    """
    return read_lines(path, from_json, "analyses") if path.is_file() else []


def json_lines(results: Iterable[AnalysisResult]) -> str:
    """Return results as the text of a JSON-lines file."""
    return "".join(to_json(result) + "\n" for result in results)


def analysis_table(results: Iterable[AnalysisResult]) -> pd.DataFrame:
    """Return one row per number of every analysis."""
    import pandas as pd

    frame = pd.DataFrame([row for result in results for row in result.rows()])
    numbers = {name: "float64" for name in ("value", "low", "high", "x") if name in frame}
    return frame.astype(numbers | {name: "string" for name in frame if name not in numbers and name != "draw"})


_FILE = "failures.jsonl"
T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Records why a task or another part of a run is not among the results.

    Attributes:
        name: name of what failed, such as a task.
        error: name of the error's class.
        text: the error as it is shown, in several lines.
    """

    name: str
    error: str
    text: str


def read_failures(folder: Path) -> list[Failure]:
    """Return the failures of the last run into a folder of results; lines of the file that are not failures are
    skipped.
    """
    path = folder / _FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [failure for line in lines if (failure := _parsed(line)) is not None]


def _parsed(line: str) -> Failure | None:
    try:
        values = json.loads(line)
        return Failure(*(str(values[name]) for name in ("name", "error", "text")))
    except (ValueError, KeyError, TypeError):
        return None


def run_all(attempts: Sequence[tuple[str, Callable[[], T]]], folder: Path, what: str) -> list[T]:
    """Run all attempts and return their results. A ProbingError in one does not stop the others, except a full disk.

    Failures are written into the folder, in place of those of an earlier run.

    Args:
        attempts: functions to call, each with a name.
        folder: folder of the results; None: failures are not written.
        what: word for the attempts in messages, such as `tasks`.

    Raises:
        UnitFailed: some failed; it is raised after all were tried, with the errors by name.
        ProbingError: all attempts (or the only one) failed for the same reason; that error is raised.
    """
    found: list[T] = []
    errors: dict[str, ProbingError] = {}
    for name, attempt in attempts:
        try:
            found.append(attempt())
        except DiskFull:
            raise
        except ProbingError as error:
            errors[name] = error
    try:
        _note(folder, errors)
    except OSError:
        if not errors:  # which say more than that they cannot be noted
            raise
    if len(errors) == len(attempts) and len({(type(error), str(error)) for error in errors.values()}) == 1:
        raise next(iter(errors.values()))
    if errors:
        raise failed_together(errors, f"{len(errors)} of {len(attempts)} {what}")
    return found


def _note(folder: Path, errors: dict[str, ProbingError]) -> None:
    kept = [Failure(name, type(error).__name__, str(error)) for name, error in errors.items()]
    if not (kept and folder.is_dir()):
        (folder / _FILE).unlink(missing_ok=True)
        return
    write_atomically(folder / _FILE, "".join(json.dumps(asdict(failure)) + "\n" for failure in kept).encode())


def failed_together(errors: dict[str, ProbingError], count: str) -> UnitFailed:
    """Return one error for several that were raised, by the name of what failed; `count` says how many of how many."""
    named = [f"{name} ({type(error).__name__}: {error.message})" for name, error in errors.items()]
    more = f", and {len(named) - 5} more" if len(named) > 5 else ""
    failure = UnitFailed(
        f"{count} failed",
        needed="all of them",
        found="; ".join(named[:5]) + more,
        next_step="mend what the errors name and run the same command again: what is done is kept",
    )
    failure.errors = errors
    return failure


def failed_with(failure: UnitFailed | None, error: ProbingError) -> UnitFailed:
    """Return the failure of tasks with that of a later part of a run, which is among its `errors` too."""
    if failure is None:
        return error if isinstance(error, UnitFailed) else failed_together({type(error).__name__: error}, "1 part")
    later = error.errors if isinstance(error, UnitFailed) else {"after training": error}
    errors = {
        **failure.errors,
        **{name if name not in failure.errors else f"{name} (use)": e for name, e in later.items()},
    }
    return failed_together(errors, f"{len(errors)} parts of the run")
