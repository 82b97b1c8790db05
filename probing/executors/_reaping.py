"""Ends what Ray started here once the process that started Ray is gone, even if it was killed: Ray's own agents wait
minutes.

Every process that Ray starts inherits a mark in its environment; this file is run as a program, which waits for its
standard input to end and then kills whatever bears the mark.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "PROBING_RAY_RUN"
ROUNDS, PAUSE = 10, 0.3


@contextmanager
def reaped() -> Iterator[None]:
    """On Linux, end every process that was started in the block when the block ends or this process dies."""
    token = secrets.token_hex(16)
    os.environ[MARK] = token
    watcher = None
    if Path("/proc/self/environ").exists():
        watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={},
        )
    try:
        yield
    finally:
        os.environ.pop(MARK, None)
        if watcher is not None and watcher.stdin is not None:
            watcher.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                watcher.wait(timeout=2 * ROUNDS * PAUSE)


def marked(token: str) -> list[int]:
    """Return the ids of the processes that have this mark in their initial environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={token}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def _reap(token: str) -> None:
    while sys.stdin.buffer.read(1):
        pass
    for _ in range(ROUNDS):
        left = marked(token)
        if not left:
            return
        for process in left:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(PAUSE)


if __name__ == "__main__":
    _reap(sys.argv[1])
