"""Files as a child process has them: opened once, regular, without following symbolic links."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from probing.store.audit import refuse


@dataclass(frozen=True)
class SourceFile:
    """An open file from elsewhere.

    Attributes:
        path: where it lies; only its name enters messages.
        stream: open for reading.
        n_bytes: its size.
    """

    path: Path
    stream: BufferedReader
    n_bytes: int

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name

    def exactly(self, n_bytes: int, what: str) -> bytes:
        """The next bytes.

        Raises:
            UntrustedFile: the file ends before.
        """
        data = self.stream.read(n_bytes)
        if len(data) < n_bytes:
            refuse(f"{n_bytes:,} bytes of {what}", self.name, f"{len(data):,}: the file is cut off")
        return data


def open_source(path: Path) -> SourceFile:
    """Open a file.

    Raises:
        UntrustedFile: a symbolic link, a pipe, a device or a directory.
        OSError: it cannot be opened.
    """
    if path.is_symlink():
        refuse("no symbolic links", path.name, "a symbolic link")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)  # a pipe must not make us wait
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        refuse("regular files", path.name, "a pipe, device or directory")
    return SourceFile(path, os.fdopen(fd, "rb"), status.st_size)
