"""The loop of a worker process: units come in over a pipe, and their outcomes go out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from probing.contracts.executor import Outcome, Place, WorkerFactory, as_work_error
from probing.executors._units import begin
from probing.system import stopping
from probing.system.child_processes import EndsWithParent

# Messages of a worker: (READY,), (PROGRESS, size), (ENDED, status, error, seconds) of its oldest unit, (BROKEN, error).
READY, PROGRESS, ENDED, BROKEN = "ready", "progress", "ended", "broken"


def serve(tie: EndsWithParent, pipe: Connection, sent: bytes, place: Place) -> None:
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


def _serve(pipe: Connection, sent: bytes, place: Place) -> None:
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
