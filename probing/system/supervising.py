"""Runs the work in a child process if the address space is limited (`ulimit -v`), since libraries then abort or hang.

If memory or a thread is refused, the allocators of C and C++, OpenMP and BLAS end the process or wait forever, without
an exception. The parent process, which only waits, reports the error instead.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

from probing import errors
from probing.errors import NotEnoughMemory
from probing.system import stopping
from probing.system.ending import block
from probing.system.stopping import end_with

HANG_SECONDS = 30.0
NEAR = 0.7  # of the limit: only then is a process that does nothing taken for one that waits for memory
_NOISE = (
    b"Traceback",
    b"Exception ignored",
    b"Exception in thread",
    b"terminate called",
    b"Fatal Python",
    b"libgomp",
    b"OpenBLAS",
    b"Process ",
    b"MemoryError",
    b"OMP:",
    b"memory allocation",
)
_OURS = (b"warning: ", b"stopped by ", *(f"{name}: ".encode() for name in dir(errors) if name[0].isupper()))
_BUG = 254


def address_limit() -> int | None:
    """Return the limit of this process's address space in bytes; None if there is none, or the system has no such
    limits.
    """
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else int(soft)


def reserve_nothing() -> None:
    """Make Arrow allocate memory only as needed, since its default allocator reserves a gigabyte of address space,
    which a process with a limit may not get.

    It must be called before pyarrow is imported.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def supervised(work: Callable[[], None]) -> None:
    """Run the work in this process, or in a child process if the address space is limited.

    Raises:
        SystemExit: carries the exit code of the work.
    """
    limit = address_limit()
    if limit is None or not hasattr(os, "fork"):
        work()
        return
    reserve_nothing()
    said, saying = os.pipe()
    heard, hearing = os.pipe()
    is_quiet = sys.stderr is None or sys.stderr.isatty()
    parent = os.getpid()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    child = os.fork()
    if not child:
        end_with(parent)
        if not is_quiet:
            os.dup2(hearing, 2)
        for end in (said, heard, hearing):
            os.close(end)
        _report(work, saying)
    os.close(saying)
    os.close(hearing)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: _pass_on(child, number))
    _wait(child, said, Relay(heard), limit)


def _report(work: Callable[[], None], saying: int) -> NoReturn:
    """Do the work in the child, and write its exit code to the pipe; a child that writes none was ended."""
    code = 0
    try:
        work()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except MemoryError:
        os._exit(1)
    except BaseException:
        code = _BUG
        traceback.print_exc()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os.write(saying, bytes([code]))
    os._exit(code)


def _wait(child: int, said: int, relay: Relay, limit: int) -> NoReturn:
    """Wait for the child, and end as it did, or with an error that says how it ended."""
    status = _ended(child, limit, relay)
    code = os.read(said, 1)
    stopping.over()
    if code and code[0] != _BUG:
        raise SystemExit(code[0])
    if code:
        write(relay.hidden)
        raise SystemExit(1)
    how = "hung" if status < 0 else "ended at once"
    if status >= 0 and os.WIFSIGNALED(status):
        how = f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    error = NotEnoughMemory(
        "not enough memory",
        needed="more address space than the limit leaves",
        found=f"a limit of {limit / 2**20:,.0f} MiB (ulimit -v), under which the work {how}",
        next_step="raise the limit, or use fewer workers or threads, and run the same command again: what is done is "
        "kept",
    )
    write((block(error) + "\n").encode())
    raise SystemExit(1)


def _pass_on(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def write(data: bytes) -> None:
    """Write bytes to standard error; nothing is written if the stream is broken."""
    with suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


class Relay:
    """Passes the child's standard error on to this process's, except messages of libraries about exhausted memory.

    Attributes:
        hidden: lines that were not passed on.
    """

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._rest = b""
        self._is_ours, self._in_block = True, False
        self.hidden = b""
        os.set_blocking(reader, False)

    def pass_on(self, *, at_end: bool = False) -> None:
        """Pass on the complete lines that have arrived; with `at_end`, also a last line without newline."""
        with suppress(BlockingIOError):
            while data := os.read(self._reader, 1 << 16):
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        for line in [*(line + b"\n" for line in lines), *([self._rest] if at_end and self._rest else [])]:
            self._in_block = line.startswith(_OURS) or (self._in_block and line.startswith(b"  "))
            self._is_ours = self._in_block or (self._is_ours and not any(mark in line for mark in _NOISE))
            if self._is_ours:
                write(line)
            else:
                self.hidden += line


class _Use(NamedTuple):
    """What a process and its children have used of the machine, since each began."""

    user: float  # clock ticks in the process's own code
    system: float  # clock ticks in system calls
    other: float  # page faults and bytes read or written

    @classmethod
    def of(cls, process: int) -> Self:
        """Ask the system; zeros where it does not say."""
        facts = _facts(process)
        parts = [cls(float(facts[11]), float(facts[12]), _faults(facts) + _bytes(process))] if facts else []
        parts += [cls.of(other) for other in _children(process)]
        return cls(*(sum(values) for values in zip((0.0, 0.0, 0.0), *parts, strict=True)))

    def is_stuck_since(self, before: Self) -> bool:
        """Return whether nothing was done: no memory or file touched, and no time used but in system calls.

        Libraries wait for memory that was refused, or ask for it again and again.
        """
        return self.other == before.other and self.user - before.user <= (self.system - before.system) / 2


def _ended(child: int, limit: int, relay: Relay) -> int:
    """Return the status of the child once it has ended; -1 if it did nothing any more, near the limit, and was
    killed.
    """
    pause, before, since = 0.005, _Use.of(child), time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        relay.pass_on(at_end=bool(ended))
        if ended:
            return status
        time.sleep(pause)
        pause = min(0.1, 1.5 * pause)
        if _address_space(child) < NEAR * limit:
            before, since = _Use.of(child), time.monotonic()
        elif time.monotonic() - since > HANG_SECONDS:
            now = _Use.of(child)
            if now.is_stuck_since(before):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                relay.pass_on(at_end=True)
                return -1
            before, since = now, time.monotonic()


def _faults(facts: list[Any]) -> float:
    return float(facts[7]) + float(facts[9])


def _bytes(process: int) -> float:
    with suppress(OSError, ValueError):
        lines = Path(f"/proc/{process}/io").read_text(encoding="ascii").splitlines()
        return float(sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar"))))
    return 0.0


def _children(process: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text(encoding="ascii").split())
    return found


def _address_space(process: int) -> float:
    facts = _facts(process)
    return float(facts[20]) if facts else 0.0


def _facts(process: int) -> list[Any]:
    """Return the fields of /proc/PID/stat from the state on."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
