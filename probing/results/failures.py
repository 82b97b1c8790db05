"""Failure: what failed of several things asked for, and why; kept beside the results so that a report can mention
it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from probing.errors import DiskFull, ProbingError, UnitFailed
from probing.files.whole_files import write_atomically

_FILE = "failures.jsonl"
T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Says why something that was asked for is not among the results.

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
        raise _failure(errors, f"{len(errors)} of {len(attempts)} {what}")
    return found


def _note(folder: Path, errors: dict[str, ProbingError]) -> None:
    kept = [Failure(name, type(error).__name__, str(error)) for name, error in errors.items()]
    if not (kept and folder.is_dir()):
        (folder / _FILE).unlink(missing_ok=True)
        return
    write_atomically(folder / _FILE, "".join(json.dumps(asdict(failure)) + "\n" for failure in kept).encode())


def _failure(errors: dict[str, ProbingError], count: str) -> UnitFailed:
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
