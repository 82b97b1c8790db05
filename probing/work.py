"""WorkUnit, WorkPlan, Outcome: pieces of work that any process may do, in any order, more than once without harm."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any, Literal

from probing.errors import ProbingError, UnitFailed
from probing.provenance import digest

Report = Callable[[int], None]
Status = Literal["done", "failed", "lost"]


@dataclass(frozen=True)
class WorkUnit:
    """One piece of work: doing it twice gives the same files as doing it once.

    Attributes:
        id: derived from what is to be done, equal in every process and run.
        name: for messages.
        size: how much work it is, in whatever the plan counts (words).
        payload: what a worker needs besides what it has; it must survive a process boundary.
    """

    id: str
    name: str
    size: int = 1
    payload: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class WorkPlan:
    """Units in the order in which they are begun."""

    units: tuple[WorkUnit, ...]

    def only(self, ids: Container[str]) -> WorkPlan:
        """The units with these ids, in the same order."""
        return WorkPlan(tuple(unit for unit in self.units if unit.id in ids))


@dataclass(frozen=True)
class Outcome:
    """What became of a unit, as the executor saw it; the disk decides.

    Attributes:
        unit: which.
        status: `done`; `failed`: it raised; `lost`: its workers died.
        error: why it is not done.
        seconds: from its beginning to its end.
    """

    unit: WorkUnit
    status: Status
    error: ProbingError | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a worker is.

    Attributes:
        slot: its number among the workers, from 0 on; None: the one worker in the caller's own process.
        threads: processor threads that are its own; None: as they are.
    """

    slot: int | None = None
    threads: int | None = None


def unit_id(*parts: Any) -> str:
    """An id of work from what determines it, as SHA-256 (hex) of canonical JSON."""
    return digest(list(parts))


def as_work_error(error: BaseException, name: str) -> ProbingError:
    """The error itself if it is ours, with its attributes; else a `UnitFailed` that says what it was, and where."""
    if isinstance(error, ProbingError):
        return error
    wrapped = UnitFailed(
        f"{name} failed", found=f"{type(error).__name__}: {error}", next_step="see the note for where it was raised",
    )  # fmt: skip
    wrapped.add_note("".join(traceback.format_exception(error)[-4:]).strip())
    wrapped.__cause__ = error
    return wrapped
