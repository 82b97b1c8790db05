"""Work in a forked child that may crash, hang or be killed without harm to the process that judges it."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

BUG = 99


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: exit status; None if a signal ended it.
        signal: the signal; None if none did.
        hung: it had to be killed for taking too long.
        output: its standard output and standard error.
    """

    code: int | None
    signal: int | None
    hung: bool
    output: str

    @property
    def kind(self) -> str:
        """`hang`, `crash`, or "" for an end that a program may come to."""
        return "hang" if self.hung else "crash" if self.signal is not None or self.code == BUG else ""


def start(work: Callable[[], object], *, output: int | None = None) -> int:
    """Fork a child that does `work` and exits: 0, the status of a SystemExit, or 99 after any other exception."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = BUG
    try:
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(work: Callable[[], object], seconds: float = 30) -> Ended:
    """Do `work` in a child and say how it ended."""
    reader, writer = os.pipe()
    child = start(work, output=writer)
    os.close(writer)
    output, hung = _heard(reader, time.monotonic() + seconds)
    os.close(reader)
    if hung:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status)
    return Ended(
        None if killed else os.waitstatus_to_exitcode(status), os.WTERMSIG(status) if killed else None, hung, output
    )


def _heard(reader: int, end: float) -> tuple[str, bool]:
    """All that is said until the other side is closed, and whether it never was."""
    parts = []
    while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
        parts.append(os.read(reader, 1 << 16))
        if not parts[-1]:
            return b"".join(parts).decode("utf-8", "replace"), False
    return b"".join(parts).decode("utf-8", "replace"), True


def ask(work: Callable[[], Any], seconds: float = 30) -> tuple[Any, str]:
    """The JSON value that `work` gives in a child, and "" or what became of the child instead."""
    ended = run(lambda: print("\n" + json.dumps(work())), seconds)
    if ended.kind or ended.code:
        return None, ended.kind or "crash"
    return json.loads(ended.output.splitlines()[-1]), ""
