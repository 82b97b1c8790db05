"""Runs units of work in Ray actors, on this machine or on the cluster that RAY_ADDRESS names. It needs the
extra `ray`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from probing.contracts.executor import (
    Executor,
    Outcome,
    Report,
    WorkerFactory,
    WorkerSlot,
    WorkPlan,
    WorkUnit,
    as_work_error,
)
from probing.errors import MissingDependency, ProbingError
from probing.executors._reaping import reaped
from probing.executors._units import RETRIES, Attempt, check_options, cores, lost, no_start, stalled


class RayActors(Executor):
    """Runs units of work (shards, fits) in Ray actors, each of which has its processors for the whole run.

    If an actor dies, the unit that it was doing is run again, at most three times; if its actor dies each time, the
    unit fails with `WorkerLost`. States never pass through Ray: actors write to the store, which must be on a disk that
    all nodes share. Without RAY_ADDRESS, Ray is started on this machine and ended with the run. Ray's usage reports are
    off.

    Args:
        workers: number of actors.
        threads: processor threads of each actor, and processors reserved for it; None means an equal share of this
            machine's.
        gpus: number of GPUs reserved for each actor, which sees no others.
        stall_seconds: seconds without any unit ending after which the run is ended with `Stalled`; Ray reports nothing
            while a unit runs.
    """

    def __init__(
        self, workers: int = 2, threads: int | None = None, gpus: float = 0.0, stall_seconds: float = 3600.0
    ) -> None:
        check_options(workers, threads, stall_seconds)
        if importlib.util.find_spec("ray") is None:
            raise MissingDependency(
                "the executor ray needs Ray",
                needed="the package ray",
                found="not installed",
                next_step="pip install 'probing-toolkit[ray]', or use the executor processes",
            )
        self.workers = workers
        self.threads = threads
        self.gpus = gpus
        self.stall_seconds = stall_seconds

    def run(self, plan: WorkPlan, factory: WorkerFactory, report: Report) -> Iterator[Outcome]:
        """Run every unit and yield its outcome; the actors are ended with the run, however it ends. Arguments are those
        of `Executor.run`.
        """
        if not plan.units:
            return
        with _signals_heard(), reaped():
            ray, is_ours = _ray(self)
            try:
                with closing(_Pool(ray, self, plan, factory)) as pool:
                    for outcome in pool.outcomes():
                        report(outcome.unit.size if outcome.status == "done" else 0)
                        yield outcome
            finally:
                if is_ours:
                    ray.shutdown()


def _ray(executor: RayActors) -> tuple[Any, bool]:
    """Return Ray, started, and whether it was started here."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _signals_are_ours():
        import ray

        if ray.is_initialized():
            return ray, False
        address = os.environ.get("RAY_ADDRESS", "local")
        n_cpus = max(cores(), executor.workers * (executor.threads or 1))
        size: dict[str, Any] = {"num_cpus": n_cpus, "include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **size)
        return ray, True


@contextmanager
def _signals_are_ours() -> Iterator[None]:
    """Within the block, SIGTERM is handled here and not by Ray: it means exit code 75.

    The processes that Ray starts inherit what is blocked here: a signal to the whole group then ends the run in this
    process, which ends them, and not Ray beneath it.
    """
    ours = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    before = {number: signal.getsignal(number) for number in ours}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def _signals_heard() -> Iterator[None]:
    """Within the block, what a signal handler raises inside Ray's compiled code is raised itself, not as the cause of a
    SystemError.
    """
    try:
        yield
    except SystemError as error:
        raise error.__cause__ or error from None


class _Actor:
    """A worker inside a Ray actor."""

    def __init__(self, factory: WorkerFactory, place: WorkerSlot) -> None:
        self._worker = None
        self._error: ProbingError | None = None
        try:
            self._worker = factory(place)
        except Exception as error:
            self._error = as_work_error(error, "a worker")

    def ready(self) -> ProbingError | None:
        """Return the error that kept the worker from being made, if there was one."""
        return self._error

    def do(self, unit: WorkUnit) -> tuple[Any, ...]:
        """Do one unit, and return its status, error and seconds."""
        assert self._worker is not None
        with Attempt(unit) as attempt:
            attempt.finish = self._worker.start(unit, lambda size: None)
        outcome = attempt.outcome()
        return outcome.status, outcome.error, outcome.seconds

    def close(self) -> None:
        """Release what the worker holds."""
        if self._worker is not None:
            self._worker.close()


@dataclass
class _Seat:
    """An actor, the call that it was given last, and the unit of that call (None: whether it is ready)."""

    slot: int
    actor: Any
    answer: Any
    unit: WorkUnit | None = None
    asked: float = 0.0
    waits: bool = False


class _Pool:
    """State of one run."""

    def __init__(self, ray: Any, executor: RayActors, plan: WorkPlan, factory: WorkerFactory) -> None:
        self._ray = ray
        self._threads = executor.threads or max(1, cores() // executor.workers)
        self._gpus = executor.gpus
        self._stall_seconds = executor.stall_seconds
        self._n_workers = min(executor.workers, len(plan.units))
        self._factory = ray.put(factory)
        self._queue = deque(plan.units)
        self._deaths: Counter[str] = Counter()  # by unit
        self._dead_at_start = 0
        self._seats: list[_Seat] = []

    def outcomes(self) -> Iterator[Outcome]:
        """Yield outcomes until nothing is queued or under way."""
        self._seats = [self._new_seat(slot) for slot in range(self._n_workers)]
        while self._queue or any(seat.unit for seat in self._seats):
            for seat in self._seats:
                if seat.waits and self._queue:
                    seat.unit, seat.asked, seat.waits = self._queue.popleft(), time.perf_counter(), False
                    seat.answer = seat.actor.do.remote(seat.unit)
            asked = {seat.answer: seat for seat in self._seats if not seat.waits}
            found, _ = self._ray.wait(list(asked), num_returns=1, timeout=self._stall_seconds)
            if not found:
                raise stalled(self._stall_seconds, [seat.unit for seat in self._seats if seat.unit])
            yield from self._hear(asked[found[0]])

    def close(self) -> None:
        """End all actors; idle ones release first what they hold."""
        for seat in self._seats:
            with suppress(self._ray.exceptions.RayError):
                if seat.waits:
                    self._ray.get(seat.actor.close.remote(), timeout=10)
        for seat in self._seats:
            self._ray.kill(seat.actor)

    def _new_seat(self, slot: int) -> _Seat:
        kind = self._ray.remote(_Actor).options(
            num_cpus=self._threads, num_gpus=self._gpus, max_restarts=0, max_task_retries=0
        )
        place = WorkerSlot(None if self._gpus else slot, self._threads)  # Ray shows an actor its own GPUs only
        actor = kind.remote(self._factory, place)
        return _Seat(slot, actor, actor.ready.remote())

    def _hear(self, seat: _Seat) -> Iterator[Outcome]:
        unit = seat.unit
        try:
            answer = self._ray.get(seat.answer)
        except self._ray.exceptions.RayActorError:
            yield from self._bury(seat)
            return
        if unit is None:
            self._dead_at_start = 0
            if answer is not None:
                raise answer
        seat.unit, seat.waits = None, True
        if unit is not None:
            yield Outcome(unit, *answer)

    def _bury(self, seat: _Seat) -> Iterator[Outcome]:
        """Replace a dead actor; its unit goes first again, unless it has had enough of them."""
        self._dead_at_start += seat.unit is None
        if self._dead_at_start > RETRIES:
            raise no_start(self._dead_at_start)
        if seat.unit is not None:
            self._deaths[seat.unit.id] += 1
            if self._deaths[seat.unit.id] > RETRIES:
                yield lost(seat.unit, time.perf_counter() - seat.asked)
            else:
                self._queue.appendleft(seat.unit)
        self._seats.remove(seat)
        if self._queue:
            self._seats.append(self._new_seat(seat.slot))


MEMBER = RayActors
