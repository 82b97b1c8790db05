"""Processes that end with the one that started them, also where that was killed and could not tell them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """From here on this process is killed when its parent is gone: by the kernel on Linux, elsewhere by a thread.

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
    """What is first unpickled in a child process, before anything that takes long to import: it calls `end_with`."""

    def __reduce__(self) -> tuple[object, ...]:
        return _ended_with, (os.getpid(),)


def _ended_with(parent: int) -> EndsWithParent:
    end_with(parent)
    return EndsWithParent()
