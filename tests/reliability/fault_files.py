"""File operations that stop for ever, or fail once, at a chosen call."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from probing.states.store import FileOps
from tests.reliability.job import QuickFiles

CALLS = (
    "open",
    "bypass_cache",
    "write",
    "fsync",
    "close",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "listdir",
    "stat",
    "free_bytes",
    "clock",
)


class Stopped(BaseException):
    """The process is gone: nothing it would have done next happens."""


class Counted(QuickFiles):
    """Counts calls and acts at call `at`: stops for ever, or fails once.

    Args:
        at: which call, from 0 on; None: never.
        error: an error number, or MemoryError; None: stop there for ever.
        half: a write that stops or fails has first written half of its data.

    Attributes:
        count: calls so far.
        hit: the name of the call that was stopped or failed.
    """

    def __init__(
        self, at: int | None = None, error: int | type[BaseException] | None = None, *, half: bool = False
    ) -> None:
        self.at, self.error, self.half = at, error, half
        self.count = 0
        self.hit = ""
        self._dead = False

    def _before(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self._dead:
            raise Stopped
        self.count += 1
        if self.count - 1 != self.at:
            return
        self.hit = name
        if name == "write" and self.half:
            os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self.error is None:
            self._dead = True
            raise Stopped
        if name == "close":
            os.close(arguments[0])
        if isinstance(self.error, int):
            raise OSError(self.error, os.strerror(self.error))
        raise self.error


def _counted(name: str) -> Callable[..., Any]:
    def call(self: Counted, *arguments: Any) -> Any:
        self._before(name, arguments)
        return getattr(QuickFiles, name)(self, *arguments)

    return call


for _name in CALLS:
    setattr(Counted, _name, _counted(_name))


class ShortWrites(QuickFiles):
    """A disk that takes at most so many bytes at a time."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most

    def write(self, fd: int, data: memoryview) -> int:
        """Fewer bytes than given."""
        return FileOps.write(self, fd, data[: self.most])
