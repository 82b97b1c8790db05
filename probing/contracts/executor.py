"""Defines units of work (`WorkUnit`, `WorkPlan`, `Outcome`), which any process may do, in any order; doing one twice
does no harm.

Worker and Executor are the abstract classes that do the work; the files in `executors/` are executors.
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
    """Describes one unit of work; doing it twice writes the same files as doing it once.

    Attributes:
        id: hash of what is to be done, equal in every process and run.
        name: its name in messages.
        size: amount of work, in the unit that the plan counts in (words, for extraction).
        payload: data that a worker needs for this unit; it must be picklable.
    """

    id: str
    name: str
    size: int = 1
    payload: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class WorkPlan:
    """Lists units of work, in the order in which they are started."""

    units: tuple[WorkUnit, ...]

    def only(self, ids: Container[str]) -> WorkPlan:
        """Return the plan of the units with these ids, in the same order."""
        return WorkPlan(tuple(unit for unit in self.units if unit.id in ids))


@dataclass(frozen=True)
class Outcome:
    """Describes how a unit ended, as the executor saw it; only the unit's files show whether the work is really done.

    Attributes:
        unit: the unit.
        status: `done`, `failed` (it raised an error) or `lost` (its workers died).
        error: the error, if it is not done.
        seconds: time from its start to its end.
    """

    unit: WorkUnit
    status: Status
    error: ProbingError | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class WorkerSlot:
    """Describes a worker of an executor.

    Attributes:
        slot: its number among the workers, from 0 on; None for the one worker in the caller's own process.
        threads: number of processor threads it uses; None leaves it unchanged.
    """

    slot: int | None = None
    threads: int | None = None


def unit_id(*parts: Any) -> str:
    """Return an id for a unit of work, the SHA-256 (hex) of everything that determines it."""
    return digest(list(parts))


def as_work_error(error: BaseException, name: str) -> ProbingError:
    """Return an error that can be sent to another process: the error itself if it is one of this package or of the
    machine, else a `UnitFailed` that names its type, message and place.
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
    """Does units of work in one process, one after the other. A factory makes one worker in each process."""

    @abstractmethod
    def start(self, unit: WorkUnit, report: Report) -> Callable[[], None]:
        """Do the part of a unit that must be done before the next unit can start; the returned function does the rest.

        Args:
            unit: what to do.
            report: called with the part of `unit.size` that was done since the last call; each call also shows that the
                worker is alive.

        Returns:
            A function that waits until the unit is on the disk, and raises an error if it could not be written.

        Raises:
            StoreBusy: another process is doing this unit; the executor offers it again later.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait until everything is written, and release what the worker holds."""


WorkerFactory = Callable[[WorkerSlot], Worker]


class Executor(ABC):
    """Base class of executors: each runs units of work on workers, which a function (the factory) makes.

    It may run a unit more than once, and its report of what is done may be wrong: the files on disk decide.

    Class attributes:
        in_process: whether the worker lives in the caller's process. If not, the factory and the units are sent to
            other processes.

    Attributes:
        threads: number of processor threads that each worker uses; None means that the executor chooses it.
    """

    in_process: ClassVar[bool] = False
    threads: int | None

    @abstractmethod
    def run(self, plan: WorkPlan, factory: WorkerFactory, report: Report) -> Iterator[Outcome]:
        """Run every unit and yield its outcome, in the order in which units end. Closing the iterator stops the
        workers.

        Args:
            plan: the units.
            factory: a function that makes a worker; it is called in the worker's process.
            report: called with the amount of work done since its last call, in the unit of `WorkUnit.size`.

        Raises:
            Stalled: no worker made progress for as long as the executor waits.
            WorkerLost: workers die before they begin a unit.
            MissingDependency: a package that the executor needs is not installed.
            ProbingError: the factory raised it.
        """


def __getattr__(name: str) -> Any:
    if name != "Place":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_of_old_name("`Place` of probing.contracts.executor is now `WorkerSlot`")
    return WorkerSlot
