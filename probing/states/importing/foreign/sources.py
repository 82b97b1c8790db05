"""Opens untrusted files in the child process: only regular files, only once, and without following symbolic links."""

from __future__ import annotations

import json
import math
import os
import resource
import stat
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from probing.states.store.verify import refuse

FREE_BYTES = 64 << 20  # so large a file may be as sparse as it likes
RATIO = 100


@dataclass(frozen=True)
class SourceFile:
    """Holds an open, untrusted file.

    Attributes:
        path: path of the file; messages contain only its name.
        stream: binary stream, open for reading.
        n_bytes: size of the file.
    """

    path: Path
    stream: BufferedReader
    n_bytes: int

    @property
    def name(self) -> str:
        """Name of the file, for messages."""
        return self.path.name

    def exactly(self, n_bytes: int, what: str) -> bytes:
        """Read and return exactly the given number of bytes; `what` names them in messages.

        Raises:
            UntrustedFile: the file ends before that.
        """
        data = self.stream.read(n_bytes)
        if len(data) < n_bytes:
            refuse(f"{n_bytes:,} bytes of {what}", self.name, f"{len(data):,}: the file is cut off")
        return data


def open_source(path: Path) -> SourceFile:
    """Open an untrusted file, without following symbolic links.

    Raises:
        UntrustedFile: it is a symbolic link, a pipe, a device or a directory, or a sparse file that appears to be
            large.
        OSError: the file cannot be opened.
    """
    refuse_link(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)  # a pipe must not make us wait
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        refuse("regular files", path.name, "a pipe, device or directory")
    try:
        _refuse_holes(fd, status, path.name)
    except BaseException:
        os.close(fd)
        raise
    return SourceFile(path, os.fdopen(fd, "rb"), status.st_size)


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link, since it may lead to a file that the sender could not read.

    Raises:
        UntrustedFile: the path is a symbolic link.
    """
    if path.is_symlink():
        refuse("no symbolic links", path.name, "a symbolic link")


def _refuse_holes(fd: int, status: os.stat_result, name: str) -> None:
    """Refuse a file of few stored bytes whose size, holes counted, would have to be read, hashed and kept.

    Raises:
        UntrustedFile: it is sparse, and apparently far larger than what it stores.
    """
    stored = 512 * getattr(status, "st_blocks", status.st_size)
    if status.st_size <= FREE_BYTES or status.st_size <= RATIO * stored or not hasattr(os, "SEEK_HOLE"):
        return
    has_hole = os.lseek(fd, 0, os.SEEK_HOLE) < status.st_size  # what a file system packs or does not count is no hole
    os.lseek(fd, 0, os.SEEK_SET)
    if has_hole:
        refuse(
            f"files that store at least 1/{RATIO} of their size", name, f"{status.st_size:,} bytes, {stored:,} stored"
        )


@dataclass(frozen=True)
class Limits:
    """Holds the limits of a child process; the time limit grows with the size of the files.

    Attributes:
        memory_bytes: address space in addition to that of the interpreter at its start.
        seconds: processor time for a small file, in seconds; the limit of elapsed time is three times that.
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
        """Return the limit of processor time in seconds, for a source of `n_bytes`."""
        return self.seconds + n_bytes / self.bytes_per_second

    def clock_seconds(self, n_bytes: int) -> float:
        """Return the limit of elapsed time in seconds, for a source of `n_bytes`."""
        return 3 * self.processor_seconds(n_bytes)


def limit_resources(limits: Limits, n_bytes: int) -> None:
    """Limit memory and processor time of this process permanently; it can then no longer write files or core dumps.

    Args:
        limits: the limits.
        n_bytes: number of bytes that will be read.
    """
    seconds = math.ceil(limits.processor_seconds(n_bytes))
    with nullcontext() if sys.platform == "linux" else suppress(ValueError, OSError):  # others may not know this limit
        _lower(resource.RLIMIT_AS, _address_space() + limits.memory_bytes)
    _lower(resource.RLIMIT_CPU, seconds, spare=1)  # the signal of the soft limit tells time from memory
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)


def limit_open_files(more: int) -> None:
    """Permanently limit the file descriptors of this process to numbers below `more`; files that are open stay open.
    With 0 it can open no further file.
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
    """Describes the job of a child process that reads an untrusted file.

    Attributes:
        format: `npy`, `hdf5`, `json`, `safetensors`, `lmprobe`, `vllm` or `store`.
        paths: the files, or the directory of a store.
        n_bytes: total size of the files.
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
        """Return the job that `text` describes: JSON of `to_json`, given to the child on its command line."""
        values: dict[str, Any] = json.loads(text)
        paths = tuple(Path(path) for path in values.pop("paths"))
        return cls(paths=paths, limits=Limits(**values.pop("limits")), **values)
