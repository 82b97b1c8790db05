"""Units of work: starts them, retries them, counts rounds until all are done, and serves them to other processes."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Self

from probing.contracts.executor import (
    Executor,
    Outcome,
    Worker,
    WorkerFactory,
    WorkerSlot,
    WorkPlan,
    WorkUnit,
    as_work_error,
)
from probing.errors import (
    BadParameter,
    CorruptShard,
    MissingDependency,
    NonFiniteStates,
    NotRepresentable,
    ProbingError,
    Stalled,
    StoreBusy,
    StoreError,
    UnitFailed,
    WorkerLost,
    WorkError,
)
from probing.recipes import build
from probing.system import stopping
from probing.system.stopping import EndsWithParent

RETRIES = 3


class Attempt:
    """One attempt at a unit: started within `with Attempt(unit) as attempt`, it ends in `outcome`. An exception of the
    unit is part of the outcome.

    Attributes:
        finish: what `Worker.start` returned for the unit: a function that waits for its end.
    """

    def __init__(self, unit: WorkUnit) -> None:
        self.finish: Callable[[], None] = lambda: None
        self._unit, self._began = unit, time.perf_counter()
        self._failed: Outcome | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        wrapped = as_work_error(error, self._unit.name)
        self._failed = Outcome(self._unit, "failed", wrapped, time.perf_counter() - self._began)
        return True

    def outcome(self) -> Outcome:
        """Wait for the end of the unit, and return its outcome."""
        if self._failed is None:
            with self:
                self.finish()
        return self._failed or Outcome(self._unit, "done", None, time.perf_counter() - self._began)


def check_options(workers: int, threads: int | None, stall_seconds: float) -> None:
    """Refuse impossible numbers of workers and threads.

    Raises:
        BadParameter: a number is out of range; the message names it.
    """
    for name, value in {"workers": workers, "threads": 1 if threads is None else threads}.items():
        if value < 1:
            raise BadParameter(f"{name} must be at least 1", needed="1 or more", found=str(value))
    if not stall_seconds > 0:
        raise BadParameter("stall_seconds must be positive", needed="more than 0", found=str(stall_seconds))


def cores() -> int:
    """Return the number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lost(unit: WorkUnit, seconds: float = 0.0) -> Outcome:
    """Return the outcome of a unit that is given up because its workers died repeatedly."""
    error = WorkerLost(
        f"{unit.name} was set aside: its worker died every time",
        needed="a worker that lives to the end of a unit",
        found=f"{RETRIES + 1} dead workers",
        where=unit.name,
        next_step="look for the memory killer in the system's log; take fewer workers or smaller batches",
    )
    return Outcome(unit, "lost", error, seconds)


def no_start(n_dead: int) -> WorkerLost:
    """Return the error for workers that die before they are ready."""
    return WorkerLost(
        "workers die before they begin",
        needed="workers that load the model",
        found=f"{n_dead} dead in a row",
        next_step="take fewer workers if memory is short; a script that is run as a file must call probing under "
        "`if __name__ == '__main__':`",
    )


def stalled(seconds: float, units: list[WorkUnit]) -> Stalled:
    """Return the error for workers that make no progress."""
    names = ", ".join(unit.name for unit in units[:5])
    return Stalled(
        f"no worker made progress for {seconds:g} seconds",
        needed="a sign of life from any worker",
        found="none",
        where=names or "no unit was begun",
        next_step="run the same command again: what is done is kept; raise stall_seconds if the work is that slow",
    )


# Messages of a worker: (READY,), (PROGRESS, size), (ENDED, status, error, seconds) of its oldest unit, (BROKEN, error).
READY, PROGRESS, ENDED, BROKEN = "ready", "progress", "ended", "broken"


def serve(tie: EndsWithParent, pipe: Connection, sent: bytes, place: WorkerSlot) -> None:
    """Make a worker and do the units that arrive, until the process is ended.

    Args:
        tie: object that is unpickled first, and ends this process when its parent dies.
        pipe: connection to the parent.
        sent: the pickled factory of the worker; unpickling imports modules and takes seconds.
        place: number and threads of the worker.

    The parent answers each message (READY,) with a unit, or with None: then the current unit is finished before the
    next is requested.
    """
    try:
        _follow_signals()
        _serve(pipe, sent, place)
    except stopping.Requeue:
        stopping.over()
    finally:
        stopping.over()  # no other signal may disturb how the interpreter ends


def _serve(pipe: Connection, sent: bytes, place: WorkerSlot) -> None:
    if place.threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(place.threads)  # of the tokenizer, read at its first use
    with suppress(BrokenPipeError, EOFError):
        try:
            factory: WorkerFactory = ForkingPickler.loads(sent)
            worker = factory(place)
        except Exception as error:
            pipe.send((BROKEN, as_work_error(error, "a worker")))
            return
        with closing(worker):
            _do_units(pipe, worker)


def _do_units(pipe: Connection, worker: Worker) -> None:
    before: Attempt | None = None
    while True:
        pipe.send((READY,))
        unit = pipe.recv()
        attempt = None if unit is None else Attempt(unit)
        if attempt is not None:
            with attempt:
                attempt.finish = worker.start(unit, lambda size: pipe.send((PROGRESS, size)))
        if before is not None:
            outcome = before.outcome()
            pipe.send((ENDED, outcome.status, outcome.error, outcome.seconds))
        before = attempt


def _follow_signals() -> None:
    """Ignore signals that reach the child too: the parent decides when to stop, and sends SIGTERM."""
    stopping.listen()
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


HOPELESS = 3  # so many failures and nothing done: the rest would fail too
ROUNDS = 3
POLL_SECONDS = 1.0


def executor_of(executor: str | Executor, workers: int | None, threads: int | None) -> Executor:
    """Return the executor of this name with the given numbers of workers and threads; an executor object is returned as
    it is.

    Raises:
        UnknownName, BadParameter: there is no such executor, or an option is out of range.
        MissingDependency: the executor needs a package that is not installed.
    """
    given = [f"{name}={n}" for name, n in {"workers": workers, "threads": threads}.items() if n is not None]
    if not isinstance(executor, str):
        if given:
            raise BadParameter("the executor has its own options", needed="workers and threads in the executor object")
        return executor
    name, _, own = executor.partition(":")
    built: Executor = build("executors", f"{name}:{','.join(filter(None, [own, *given]))}")
    return built


@contextmanager
def sole_error_itself(units: int) -> Iterator[None]:
    """Within the block, raise the error of the unit itself in place of `UnitFailed` if only one of these units
    failed.
    """
    try:
        yield
    except UnitFailed as failure:
        if len(failure.errors) != 1:
            raise
        ((name, error),) = failure.errors.items()
        if units > 1:
            error.add_note(f"everything but {name} is done and kept")
        raise error from error.__cause__


class Rounds:
    """Rounds of a run. Iterating yields the units to run next, again and again until none is missing; whoever runs them
    passes their outcomes to `note`. A unit that fails is not run again; the others are still run.

    Args:
        plan: all units.
        missing: function that returns the ids of the units that are not on the disk; it is called after every round.
        busy: function that returns the ids of the units that other processes compute; they are waited for.
        hopeless: number of failures without any success after which no more units are run; None: all units are run.

    Raises:
        UnitFailed: some units failed; it is raised at the end of the iteration.
    """

    def __init__(
        self,
        plan: WorkPlan,
        *,
        missing: Callable[[], Set[str]],
        busy: Callable[[], Set[str]] = frozenset,
        hopeless: int | None = HOPELESS,
    ) -> None:
        self._plan, self._missing, self._busy_elsewhere, self._hopeless = plan, missing, busy, hopeless
        self.errors: dict[str, ProbingError] = {}
        self._names: dict[str, str] = {}
        self._is_any_done = False
        self._busy: set[str] = set()
        self._rounds: Counter[str] = Counter()

    def __iter__(self) -> Iterator[WorkPlan]:
        while left := self._missing() - set(self.errors):
            todo = self._plan.only(left - self._busy_elsewhere())
            if not todo.units:
                time.sleep(POLL_SECONDS)
                continue
            yield todo
            self._doubt(self._missing(), todo)
        if self.errors:
            raise self._failure()

    def note(self, outcome: Outcome) -> None:
        """Record one outcome.

        Raises:
            UnitFailed: there were `hopeless` failures without any success.
            ProbingError: it means that no other unit can be done either, such as StoreError: the disk is full.
        """
        unit, error = outcome.unit, outcome.error
        if isinstance(error, StoreBusy):
            self._busy.add(unit.id)
        elif error is not None:
            if _ends_all(error):
                raise error
            self._set_aside(unit, error)
        self._is_any_done = self._is_any_done or outcome.status == "done"
        if self._hopeless is not None and len(self.errors) >= self._hopeless and not self._is_any_done:
            raise self._failure()

    def _doubt(self, missing: Set[str], todo: WorkPlan) -> None:
        """Set aside, after a round, the units that were run three times, never failed, and are not on the disk."""
        self._rounds.update(unit.id for unit in todo.units if unit.id not in self._busy)
        self._busy.clear()
        for unit in todo.units:
            if unit.id in missing and unit.id not in self.errors and self._rounds[unit.id] >= ROUNDS:
                error = WorkError(f"{unit.name} was run {ROUNDS} times, and is not on the disk", where=unit.name)
                self._set_aside(unit, error)

    def _failure(self) -> UnitFailed:
        """Return the error that lists the units that were set aside."""
        listed = [f"{self._names[i]} ({type(error).__name__}: {error.message})" for i, error in self.errors.items()]
        more = f", and {len(listed) - 5} more" if len(listed) > 5 else ""
        failure = UnitFailed(
            f"{len(listed)} of the units of work failed",
            needed="every unit",
            found="; ".join(listed[:5]) + more,
            next_step="mend what they name and run the same command again: what is done is kept",
        )
        failure.errors = {self._names[i]: error for i, error in self.errors.items()}
        failure.__cause__ = next(iter(self.errors.values()))
        return failure

    def _set_aside(self, unit: WorkUnit, error: ProbingError) -> None:
        self.errors[unit.id] = error
        self._names[unit.id] = unit.name


def _ends_all(error: ProbingError) -> bool:
    """Return whether the error is of the machine or the store, and not of one unit."""
    of_the_unit = isinstance(error, NonFiniteStates | NotRepresentable | CorruptShard)
    return isinstance(error, StoreError | MissingDependency) and not of_the_unit
