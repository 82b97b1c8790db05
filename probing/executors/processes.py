"""Runs units of work in several processes on this machine; a process that dies is replaced, and its unit is
done again.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError, UnpicklingError
from typing import Any

from probing.contracts.executor import Executor, Outcome, Report, WorkerFactory, WorkerSlot, WorkPlan, WorkUnit
from probing.errors import BadParameter
from probing.executors._units import (
    BROKEN,
    ENDED,
    PROGRESS,
    READY,
    RETRIES,
    check_options,
    cores,
    lost,
    no_start,
    serve,
    stalled,
)
from probing.system.stopping import EndsWithParent

_STOP_SECONDS = 10.0


class Processes(Executor):
    """Runs units of work (shards, fits) in processes of this machine, which are started by `spawn`.

    If a process dies, the unit that it was doing is run again, at most three times, with no other unit in the same
    process; if its process dies each time, the unit fails with `WorkerLost`. A unit that raises an error fails at once.

    Args:
        workers: number of processes.
        threads: processor threads of each process; None means an equal share of the cores.
        stall_seconds: seconds without progress of any worker after which the run is ended with `Stalled`.
    """

    def __init__(self, workers: int = 2, threads: int | None = None, stall_seconds: float = 1800.0) -> None:
        check_options(workers, threads, stall_seconds)
        self.workers = workers
        self.threads = threads
        self.stall_seconds = stall_seconds

    def run(self, plan: WorkPlan, factory: WorkerFactory, report: Report) -> Iterator[Outcome]:
        """Run every unit and yield its outcome; the processes are ended with the run, however it ends. Arguments are
        those of `Executor.run`.
        """
        pool = _Pool(self, plan, factory, report)
        try:
            yield from pool.outcomes()
        finally:
            pool.stop()


@dataclass
class _Seat:
    """A worker process, its end of the pipe, and the units it has, oldest first."""

    slot: int
    process: SpawnProcess
    pipe: Connection
    units: deque[tuple[WorkUnit, float]] = field(default_factory=deque)
    has_begun: bool = False
    waits: bool = False


class _Pool:
    """State of one run."""

    def __init__(self, executor: Processes, plan: WorkPlan, factory: WorkerFactory, report: Report) -> None:
        self._threads = executor.threads or max(1, cores() // executor.workers)
        self._stall_seconds = executor.stall_seconds
        self._n_workers = min(executor.workers, len(plan.units))
        self._factory = factory
        self._report = report
        self._queue = deque(plan.units)
        self._deaths: Counter[str] = Counter()  # by unit
        self._dead_at_start = 0
        self._seats: list[_Seat] = []

    def outcomes(self) -> Iterator[Outcome]:
        """Yield outcomes until nothing is queued or under way."""
        for slot in range(self._n_workers):
            self._seats.append(self._new_seat(slot))
        alive = time.monotonic()
        while self._queue or any(seat.units for seat in self._seats):
            for seat in self._seats:
                self._feed(seat)
            pipes = {seat.pipe: seat for seat in self._seats}
            found = wait(list(pipes), timeout=max(0.0, alive + self._stall_seconds - time.monotonic()))
            if not found:
                raise stalled(self._stall_seconds, [unit for seat in self._seats for unit, _ in seat.units])
            alive = time.monotonic()
            for pipe in found:
                yield from self._hear(pipes[pipe])  # type: ignore[index]

    def stop(self) -> None:
        """End all workers, so that each can release what it holds; those that do not respond are killed."""
        for seat in self._seats:
            seat.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for seat in self._seats:
            seat.process.join(max(0.0, deadline - time.monotonic()))
            if seat.process.is_alive():
                seat.process.kill()
                seat.process.join()
            seat.pipe.close()

    def _new_seat(self, slot: int) -> _Seat:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        place = WorkerSlot(slot, self._threads)
        try:
            arguments = (EndsWithParent(), theirs, bytes(ForkingPickler.dumps(self._factory)), place)
            process = context.Process(target=serve, args=arguments, daemon=True)
            with _interrupts_kept_from_children():
                process.start()
        except (PicklingError, AttributeError, TypeError) as error:
            raise BadParameter(
                "this work cannot be sent to another process",
                needed="a factory that can be pickled",
                found=str(error),
                next_step="use the executor inline",
            ) from error
        theirs.close()
        return _Seat(slot, process, ours)

    def _feed(self, seat: _Seat) -> None:
        """Answer a worker that waits: give it a unit, or None if it should finish first, or answer later."""
        if not seat.waits:
            return
        can_overlap = self._queue and not any(self._deaths[unit.id] for unit in self._suspects(seat))
        if seat.units and not can_overlap:
            answer = None
        elif self._queue:
            answer = self._queue.popleft()
            seat.units.append((answer, time.perf_counter()))
        else:
            return
        seat.waits = False
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: heard next
            seat.pipe.send(answer)

    def _suspects(self, seat: _Seat) -> list[WorkUnit]:
        return [unit for unit, _ in seat.units] + [self._queue[0]]

    def _hear(self, seat: _Seat) -> Iterator[Outcome]:
        try:
            kind, *facts = seat.pipe.recv()
        except (EOFError, OSError, UnpicklingError):
            yield from self._bury(seat)
            return
        seat.has_begun = seat.has_begun or kind == READY
        self._dead_at_start = 0 if kind == READY else self._dead_at_start
        if kind == BROKEN:
            raise facts[0]
        if kind == PROGRESS:
            self._report(facts[0])
        elif kind == READY:
            seat.waits = True
        elif kind == ENDED:
            yield self._ended(seat, *facts)

    def _ended(self, seat: _Seat, status: Any, error: Any, seconds: float) -> Outcome:
        unit, _ = seat.units.popleft()
        return Outcome(unit, status, error, seconds)

    def _bury(self, seat: _Seat) -> Iterator[Outcome]:
        """Replace a dead worker; its units go first again, unless they have had enough workers."""
        seat.pipe.close()
        seat.process.kill()  # a closed pipe with a live process is as good as dead
        seat.process.join()
        self._dead_at_start += not seat.has_begun
        if self._dead_at_start > RETRIES:
            raise no_start(self._dead_at_start)
        for unit, began in reversed(seat.units):
            self._deaths[unit.id] += 1
            if self._deaths[unit.id] > RETRIES:
                yield lost(unit, time.perf_counter() - began)
            else:
                self._queue.appendleft(unit)
        self._seats.remove(seat)
        if self._queue:
            self._seats.append(self._new_seat(seat.slot))


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Within the block, started processes never get Ctrl-C or a batch system's warning; this process gets them after
    it.
    """
    names = [name for name in ("SIGINT", "SIGUSR1") if hasattr(signal, name)]
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or it would be started in the block, and change the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in names])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


MEMBER = Processes
