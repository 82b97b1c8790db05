"""What runs in a worker process: units come in over a pipe, what became of them goes out."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from probing.executors._units import begin
from probing.work import Outcome, Place, WorkerFactory, as_work_error

# Messages of a worker: (READY,), (PROGRESS, size), (ENDED, status, error, seconds) of its oldest unit, (BROKEN, error).
READY, PROGRESS, ENDED, BROKEN = "ready", "progress", "ended", "broken"


def serve(pipe: Connection, factory: WorkerFactory, place: Place) -> None:
    """Make a worker and do the units that arrive, until the process is ended.

    Each (READY,) is answered by a unit, or by None: then the unit under way is finished before the next is asked for.
    """
    _follow_signals()
    if place.threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(place.threads)  # of the tokenizer, read at its first use
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(BrokenPipeError, EOFError):
        try:
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
    """The parent decides when to stop, since Ctrl-C and a batch system's warning reach it too."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)


def _leave(*_: object) -> NoReturn:
    raise SystemExit(0)


def _die_with_parent() -> None:
    """A worker whose parent was killed ends at once: what is half-written has no record and is swept."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
