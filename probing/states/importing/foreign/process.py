"""The parent process of an import: starts the child, receives its frames, and turns every failure into one kind of
error.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from probing.errors import UntrustedFile
from probing.states.importing.foreign.protocol import Frame, frames
from probing.states.importing.foreign.sources import ChildJob
from probing.states.store.file_ops import typed_errors
from probing.system.stopping import child_environment

CHILD = "probing.states.importing.foreign.child"


def hand_over(job: ChildJob, *, module: str = CHILD) -> Iterator[Frame]:
    """Start the child process and yield every frame that it sends from the foreign files.

    Args:
        job: the job of the child.
        module: name of the child's module; tests use another one.

    Raises:
        UntrustedFile: a file breaks a rule, or the child died, hung or sent malformed frames.
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


_MAX_COLUMNS = 512  # each is an open file


class Spool:
    """Stores named columns on disk, each as a file of raw rows. Use it as a context manager.

    Attributes:
        folder: a private, empty folder; the caller removes it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Start without columns.

        Args:
            folder: where files are made.
            limit: the most bytes of one column.
        """
        self.folder = folder
        self._limit = limit
        self._columns: dict[str, tuple[BinaryIO, tuple[int, ...], Any]] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        for stream, _, _ in self._columns.values():
            stream.close()

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order of arrival."""
        return tuple(self._columns)

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Append rows to a column.

        Raises:
            UntrustedFile: the rows differ from earlier ones in width or type, or there are too many columns or bytes.
            DiskFull: there is no room on the disk.
        """
        if name not in self._columns:
            if len(self._columns) >= _MAX_COLUMNS:
                raise _refused_rows(f"at most {_MAX_COLUMNS:,} columns", name, "more")
            file = self.folder / f"{len(self._columns):05d}"
            with typed_errors(self.folder):
                self._columns[name] = (file.open("x+b"), tuple(rows.shape[1:]), rows.dtype)
        stream, row, dtype = self._columns[name]
        if row != tuple(rows.shape[1:]) or dtype != rows.dtype:
            raise _refused_rows("one width and type for all rows of a column", name, f"{rows.shape[1:]} after {row}")
        if stream.tell() + rows.nbytes > self._limit:
            raise _refused_rows(f"at most {self._limit:,} bytes in a column", name, "more")
        with typed_errors(self.folder):
            stream.write(rows.reshape(-1).data.cast("B") if rows.size else b"")

    def column(self, name: str) -> NDArray[Any]:
        """Return a column as an array (n,) or (n, D) that is memory-mapped from its file."""
        stream, row, dtype = self._columns[name]
        with typed_errors(self.folder):
            stream.flush()
        width = int(np.prod(row, dtype=np.int64)) * dtype.itemsize
        count = stream.tell() // width if width else 0
        if not count:
            return np.empty((0, *row), dtype)
        mapped: NDArray[Any] = np.memmap(Path(stream.name), dtype, "r", shape=(count, *row))
        return mapped


def _refused_rows(rule: str, name: str, found: str) -> UntrustedFile:
    return UntrustedFile("the file is not trusted", needed=rule, found=found, where=f"column {name[:80]}")
