"""ChildJob and Limits: what a child process reads, and what it may take."""

from __future__ import annotations

import json
import math
import resource
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Holds the limits of a child process; time grows with the size of what is read.

    Attributes:
        memory_bytes: address space in addition to that of the interpreter at its start.
        seconds: processor time for a small file; the limit by the clock is three times that.
        bytes_per_second: slowest rate of reading that does not count as a hang.
        json_bytes: largest size of one JSON value in a file.
        column_bytes: largest size of one column that is sent.
    """

    memory_bytes: int = 2 << 30
    seconds: float = 20.0
    bytes_per_second: float = 1e6
    json_bytes: int = 256 << 20
    column_bytes: int = 256 << 30

    def processor_seconds(self, n_bytes: int) -> float:
        """Return the limit of processor time, for a source of `n_bytes`."""
        return self.seconds + n_bytes / self.bytes_per_second

    def clock_seconds(self, n_bytes: int) -> float:
        """Return the limit of time by the clock, for a source of `n_bytes`."""
        return 3 * self.processor_seconds(n_bytes)


def limit_resources(limits: Limits, n_bytes: int) -> None:
    """Limit memory and time of this process, for good; it can then write no file and no core dump.

    Args:
        limits: the limits.
        n_bytes: size of what will be read.
    """
    seconds = math.ceil(limits.processor_seconds(n_bytes))
    with nullcontext() if sys.platform == "linux" else suppress(ValueError, OSError):  # others may not know this limit
        _lower(resource.RLIMIT_AS, _address_space() + limits.memory_bytes)
    _lower(resource.RLIMIT_CPU, seconds, spare=1)  # the signal of the soft limit tells time from memory
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)


def limit_open_files(more: int) -> None:
    """Limit, for good, the number of further files that this process may open to `more`; open files stay open. With 0
    it can open none.
    """
    _lower(resource.RLIMIT_NOFILE, more)


def _lower(which: int, value: int, *, spare: int = 0) -> None:
    _, hard = resource.getrlimit(which)
    most = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
    resource.setrlimit(which, (min(value, most), most))


def _address_space() -> int:
    """Return the bytes of address space in use; a guess where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 4 << 30


@dataclass(frozen=True)
class ChildJob:
    """Describes the job of a child process that reads a file from elsewhere.

    Attributes:
        format: `npy`, `hdf5`, `json`, `safetensors` or `store`.
        paths: the files, or the directory of a store.
        n_bytes: their total size.
        examples: number of examples of the corpus.
        limits: limits of memory, time and sizes.
    """

    format: str
    paths: tuple[Path, ...]
    n_bytes: int
    examples: int
    limits: Limits

    def to_json(self) -> str:
        """Return the job as JSON, for the command line."""
        values = {"format": self.format, "paths": [str(path) for path in self.paths], "n_bytes": self.n_bytes}
        return json.dumps(values | {"examples": self.examples, "limits": vars(self.limits)})

    @classmethod
    def from_json(cls, text: str) -> ChildJob:
        """Return the job that `to_json` wrote on the command line."""
        values: dict[str, Any] = json.loads(text)
        paths = tuple(Path(path) for path in values.pop("paths"))
        return cls(paths=paths, limits=Limits(**values.pop("limits")), **values)
