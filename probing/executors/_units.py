"""Units of work: how one is done, what a worker process does with those it is sent, and the executors' checks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from probing.contracts.executor import Outcome, Report, Worker, WorkerFactory, WorkerSlot, WorkUnit, as_work_error
from probing.errors import BadParameter, Stalled, WorkerLost
from probing.system import stopping
from probing.system.child_processes import EndsWithParent

RETRIES = 3


def begin(worker: Worker, unit: WorkUnit, report: Report) -> Callable[[], Outcome]:
    """Start a unit, and return a function that waits for its outcome. What the unit raises is part of the outcome."""
    began = time.perf_counter()

    def failed(error: Exception) -> Outcome:
        return Outcome(unit, "failed", as_work_error(error, unit.name), time.perf_counter() - began)

    try:
        finish = worker.start(unit, report)
    except Exception as error:
        outcome = failed(error)
        return lambda: outcome

    def end() -> Outcome:
        try:
            finish()
        except Exception as error:
            return failed(error)
        return Outcome(unit, "done", None, time.perf_counter() - began)

    return end


def check_options(workers: int, threads: int | None, stall_seconds: float) -> None:
    """Refuse impossible numbers of workers and threads.

    Raises:
        BadParameter: which one.
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
    """Return the outcome of a unit that is set aside because its workers died."""
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
        tie: unpickled first, it ends this process with its parent, were that killed while the rest is imported.
        pipe: to the parent.
        sent: the pickled factory of the worker; to read it imports what takes seconds.
        place: of the worker.

    Each (READY,) is answered by a unit, or by None: then the unit under way is finished before the next is asked for.
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
            _do_units(pipe, lambda unit: begin(worker, unit, lambda size: pipe.send((PROGRESS, size))))


def _do_units(pipe: Connection, start: Callable[[Any], Callable[[], Outcome]]) -> None:
    before: Callable[[], Outcome] | None = None
    while True:
        pipe.send((READY,))
        unit = pipe.recv()
        ending = None if unit is None else start(unit)
        if before is not None:
            outcome = before()
            pipe.send((ENDED, outcome.status, outcome.error, outcome.seconds))
        before = ending


def _follow_signals() -> None:
    """Ignore signals that reach the child too: the parent decides when to stop, and sends SIGTERM."""
    stopping.listen()
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
