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
    """Limits of a child process. Time grows with the size of what is read.

    Attributes:
        memory_bytes: address space beyond what the interpreter has when it starts.
        seconds: processor time for a small file; three times that by the clock.
        bytes_per_second: the slowest reading that is not taken for a hang.
        json_bytes: of one JSON value in a file.
        column_bytes: of one column that is handed over.
    """

    memory_bytes: int = 2 << 30
    seconds: float = 20.0
    bytes_per_second: float = 1e6
    json_bytes: int = 256 << 20
    column_bytes: int = 256 << 30

    def processor_seconds(self, n_bytes: int) -> float:
        """Return the processor time for a source of `n_bytes`."""
        return self.seconds + n_bytes / self.bytes_per_second

    def clock_seconds(self, n_bytes: int) -> float:
        """Return the time by the clock for a source of `n_bytes`."""
        return 3 * self.processor_seconds(n_bytes)


def limit_resources(limits: Limits, n_bytes: int) -> None:
    """Limit memory and time of this process, for good; it can write no file and dump no core.

    Args:
        limits: how much.
        n_bytes: size of what will be read.
    """
    seconds = math.ceil(limits.processor_seconds(n_bytes))
    with nullcontext() if sys.platform == "linux" else suppress(ValueError, OSError):  # others may not know this limit
        _lower(resource.RLIMIT_AS, _address_space() + limits.memory_bytes)
    _lower(resource.RLIMIT_CPU, seconds, spare=1)  # the signal of the soft limit tells time from memory
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)


def limit_open_files(more: int) -> None:
    """Let this process open files up to number `more`, for good; what is open stays open. With 0, no file at all."""
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
    """The job of a child process.

    Attributes:
        format: `npy`, `hdf5`, `json`, `safetensors` or `store`.
        paths: files, or the directory of a store.
        n_bytes: their size in sum.
        examples: how many the corpus has.
        limits: what it may cost.
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
