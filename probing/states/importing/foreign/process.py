"""The parent's side: starts the child, takes its frames, and turns every way in which it can end into one typed
error.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from probing.errors import UntrustedFile
from probing.states.importing.foreign.job import ChildJob
from probing.states.importing.foreign.protocol import Frame, frames
from probing.system.child_processes import child_environment

CHILD = "probing.states.importing.foreign.child"


def hand_over(job: ChildJob, *, module: str = CHILD) -> Iterator[Frame]:
    """Yield everything a child process reads from foreign files, frame by frame.

    Args:
        job: what to read.
        module: the child's; another one in tests.

    Raises:
        UntrustedFile: a rule is broken, or the child died, hung or spoke nonsense.
    """
    with _child(job, module) as (process, out, late):
        last = None
        for frame in frames(out):
            last = frame
            if frame.kind == "refused":
                raise _refused(job, frame.head)
            if frame.kind != "end":
                yield frame
        out.close()
        status = process.wait()
    if late.is_set():
        seconds = job.limits.clock_seconds(job.n_bytes)
        raise _died(job, f"at most {seconds:,.0f} seconds", "more: the process was stopped")
    if last is None or last.kind != "end" or status:
        raise _died(job, "a file that can be read within limits", _cause(status))


@contextmanager
def _child(job: ChildJob, module: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], threading.Event]]:
    """Within the block, the child runs; gives the child, its output, and whether it took too long. It is gone
    afterwards.
    """
    late = threading.Event()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, job.to_json()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        cwd="/",
        start_new_session=True,
    )
    assert process.stdout is not None  # by stdout=PIPE

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(job.limits.clock_seconds(job.n_bytes), stop)
    timer.daemon = True
    timer.start()
    try:
        yield process, process.stdout, late
    finally:
        timer.cancel()
        with suppress(ProcessLookupError):
            process.kill()
        process.stdout.close()
        process.wait()


def _refused(job: ChildJob, head: dict[str, Any]) -> UntrustedFile:
    told = {key: str(head.get(key) or "")[:500] for key in ("message", "rule", "object", "found")}
    return _error(job, told["message"] or "the file is not trusted", told["rule"], told["object"], told["found"])


def _died(job: ChildJob, rule: str, found: str) -> UntrustedFile:
    return _error(job, "the process that read the file ended badly", rule, "", found)


def _error(job: ChildJob, message: str, rule: str, thing: str, found: str) -> UntrustedFile:
    name = job.paths[0].name
    where = thing if thing.startswith(name) else f"{name}: {thing}" if thing else name
    return UntrustedFile(
        message,
        needed=rule,
        found=found,
        where=where,
        next_step="nothing of it was used; ask where the file comes from, or write it anew",
    )


def _cause(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    if -status == getattr(signal, "SIGXCPU", None):
        return "no end within its processor time"
    return f"killed by signal {-status}"
