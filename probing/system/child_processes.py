"""Child processes: the environment they get, and how they end with the parent that started them, also if it was
killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

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
    """Return environment variables for a child process: one thread, no HDF5 plugins, the module paths of this process,
    and little else.
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
