"""WorkUnit, WorkPlan, Outcome: pieces of work that any process may do, in any order, more than once without harm.

And who does them: the abstract Worker and Executor. Members in `executors/` are executors.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from probing.errors import NotEnoughMemory, ProbingError, UnitFailed, warn_of_old_name
from probing.provenance import digest
from probing.system import machine

Report = Callable[[int], None]
Status = Literal["done", "failed", "lost"]


@dataclass(frozen=True)
class WorkUnit:
    """One piece of work; doing it twice gives the same files as doing it once.

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
    """Units of work, in the order in which they are begun."""

    units: tuple[WorkUnit, ...]

    def only(self, ids: Container[str]) -> WorkPlan:
        """Return the plan of the units with these ids, in the same order."""
        return WorkPlan(tuple(unit for unit in self.units if unit.id in ids))


@dataclass(frozen=True)
class Outcome:
    """The outcome of a unit, as the executor saw it; whether the unit is done is decided by its files.

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
class WorkerSlot:
    """The place of a worker: its number among the workers, and its threads.

    Attributes:
        slot: its number among the workers, from 0 on; None: the one worker in the caller's own process.
        threads: processor threads that are its own; None: as they are.
    """

    slot: int | None = None
    threads: int | None = None


def unit_id(*parts: Any) -> str:
    """Return an id of work, computed from everything that determines the work: SHA-256 (hex) of canonical JSON."""
    return digest(list(parts))


def as_work_error(error: BaseException, name: str) -> ProbingError:
    """Return the error itself, with its attributes, if it is an error of this package or of the machine; else a
    `UnitFailed` with its type, message and place.
    """
    known = machine.typed(error)
    if isinstance(known, NotEnoughMemory):
        return UnitFailed(
            f"not enough memory for {name}",
            found=known.found,
            next_step="free some memory, or use fewer workers, and run the same command again: what is done is kept",
        )
    if known is not None:
        return known
    wrapped = UnitFailed(
        f"{name} failed",
        found=f"{type(error).__name__}: {error}",
        next_step="see the note for where it was raised",
    )
    wrapped.add_note("".join(traceback.format_exception(error)[-4:]).strip())
    wrapped.__cause__ = error
    return wrapped


class Worker(ABC):
    """Does units of work in one process, one after the other; a factory makes it there, once."""

    @abstractmethod
    def start(self, unit: WorkUnit, report: Report) -> Callable[[], None]:
        """Do as much of a unit as must be done before the next can be started.

        Args:
            unit: what to do.
            report: called with how much of `unit.size` was done; also a sign of life.

        Returns:
            A function that waits until the unit is on the disk, or raises why it is not.

        Raises:
            StoreBusy: somebody else is doing it; it is offered again later.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the worker holds, and wait for what is being written."""


WorkerFactory = Callable[[WorkerSlot], Worker]


class Executor(ABC):
    """Runs units of work on workers, each of which was made once by a factory.

    It may run a unit more than once and may be wrong about what is done: the files on disk decide.

    Class attributes:
        in_process: whether the worker lives in the caller's process. If not, factory and payloads are sent there.
    """

    in_process: ClassVar[bool] = False
    threads: int | None

    @abstractmethod
    def run(self, plan: WorkPlan, factory: WorkerFactory, report: Report) -> Iterator[Outcome]:
        """Run every unit, and yield an outcome of each in the order of their ends. Closing the iterator stops the
        workers.

        Args:
            plan: the units.
            factory: makes a worker, in the worker's own process.
            report: called with how much was done, in the unit of `WorkUnit.size`.

        Raises:
            Stalled: no worker made progress for the stated time.
            WorkerLost: workers die before they begin.
            MissingDependency: a package is not installed.
            ProbingError: what the factory raised.
        """


def __getattr__(name: str) -> Any:
    if name != "Place":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_of_old_name("`Place` of probing.contracts.executor is now `WorkerSlot`")
    return WorkerSlot
