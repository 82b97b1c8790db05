"""Handles the signals that end a run, so that they end it whatever the program is doing and however many signals
arrive.

A handler can only raise an exception, and Python drops exceptions raised in a destructor, a callback or compiled code.
So the first signal is remembered and raised again until its exception propagates; if it never does, a thread ends the
process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

REQUEUE = 75
GRACE_SECONDS = 20.0  # less than the 30 that batch systems wait before they kill
TICK_SECONDS = 0.2
SAID = "stopped by a signal; the same command goes on from here: what is done is kept"


class Requeue(BaseException):
    """Raised at SIGTERM or SIGUSR1, by which a batch system ends a job before it is done."""


class Interrupt(KeyboardInterrupt):
    """Raised at Ctrl-C. It is a subclass of KeyboardInterrupt, since after a KeyboardInterrupt inside an `exec` of text
    (which makes every dataclass) the interpreter ends by the signal instead of the exit code, even if the exception was
    caught.
    """


class _Stopping:
    """The signals that have come so far."""

    def __init__(self) -> None:
        self.kind: type[BaseException] | None = None
        self.is_over = False


_state = _Stopping()
_KINDS: dict[int, type[BaseException]] = {
    int(getattr(signal, name)): Requeue for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
}


def listen() -> None:
    """Install handlers for the signals that end a run; call it once, in the main thread of a program."""
    if signal.getsignal(next(iter(_KINDS))) is _stop:
        return
    for number in _KINDS:
        signal.signal(number, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _KINDS[int(signal.SIGINT)] = Interrupt
        signal.signal(signal.SIGINT, _stop)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _tick)
    sys.unraisablehook = _without_signals(sys.unraisablehook)


def _stop(number: int, frame: FrameType | None) -> None:
    if _state.kind is not None:
        return  # the first one is under way
    _state.kind = _KINDS[number]
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
    raise _state.kind


def _tick(number: int, frame: FrameType | None) -> None:
    """Raise a signal that was dropped once more."""
    if _state.kind is not None and not _state.is_over and not _is_under_way(sys.exception()):
        raise _state.kind


def _is_under_way(error: BaseException | None) -> bool:
    """Return whether blocks that end for our exception are being left: it is handled, or was when another came."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Requeue | Interrupt | SystemExit):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def over() -> None:
    """Ignore all further signals, since the process is already ending."""
    _state.is_over = True
    if threading.current_thread() is not threading.main_thread():
        return
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number in _KINDS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_IGN)


def watch() -> None:
    """Start a thread that ends the process if the main thread does not return to Python in time, as during long
    computations.
    """
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, end == reader)
    with suppress(RuntimeError, MemoryError):  # no room for a thread: then without
        threading.Thread(target=_end_in_time, args=(reader,), daemon=True).start()
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


def _end_in_time(reader: int) -> None:
    while not any(number in _KINDS for number in os.read(reader, 64)):
        pass
    time.sleep(GRACE_SECONDS)
    if not _state.is_over:
        leave(SAID, REQUEUE if _state.kind is not Interrupt else 1)


def leave(words: str, code: int) -> NoReturn:
    """End the process at once; files that are half written have no record, and the next run deletes them."""
    with suppress(OSError):
        os.write(2, f"{words}\n".encode("utf-8", "backslashreplace"))
    os._exit(code)


def _without_signals(before: Any) -> Any:
    """Return a hook for what destructors raise: a signal that was dropped there is raised again, and not printed."""

    def hook(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Requeue | Interrupt):
            before(dropped)

    return hook


POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT", "PYTHONHOME")
_ROOT = Path(__file__).resolve().parents[2]


def end_with(parent: int) -> None:
    """Arrange that this process is killed when its parent ends: by the kernel on Linux, elsewhere by a thread that
    watches the parent.

    Args:
        parent: process id of the parent; if it is gone already, this process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_poll, args=(parent,), daemon=True).start()
    if hasattr(os, "getppid") and os.getppid() != parent:
        os._exit(1)


def _poll(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


class EndsWithParent:
    """Calls `end_with` when it is unpickled in a child process, before slow imports begin."""

    def __reduce__(self) -> tuple[object, ...]:
        return _ended_with, (os.getpid(),)


def _ended_with(parent: int) -> EndsWithParent:
    end_with(parent)
    return EndsWithParent()


def child_environment() -> dict[str, str]:
    """Return environment variables for a child process: single-threaded libraries, no HDF5 plugins, the module paths of
    this process, and the few variables in `_KEPT`.
    """
    own = {name: value for name, value in os.environ.items() if name in _KEPT}
    paths = [str(Path(path).resolve()) for path in sys.path if path]
    return own | {
        "HDF5_PLUGIN_PRELOAD": "::",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *paths]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
