"""Files as a child process has them: opened once, regular, without following symbolic links."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from probing.states.store.verify import refuse

FREE_BYTES = 64 << 20  # so large a file may be as sparse as it likes
RATIO = 100


@dataclass(frozen=True)
class SourceFile:
    """An open file that came from elsewhere.

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
        """Read and return exactly the given number of bytes.

        Raises:
            UntrustedFile: the file ends before that.
        """
        data = self.stream.read(n_bytes)
        if len(data) < n_bytes:
            refuse(f"{n_bytes:,} bytes of {what}", self.name, f"{len(data):,}: the file is cut off")
        return data


def open_source(path: Path) -> SourceFile:
    """Open a file from elsewhere.

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
