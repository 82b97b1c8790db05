"""Columns on disk while they arrive: rows are appended, and read back as arrays when all are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from probing.errors import UntrustedFile
from probing.states.store.file_ops import typed_errors

_MAX_COLUMNS = 512  # each is an open file


class Spool:
    """Columns by name, each a file of raw rows with a number for a name. Use it as a context manager.

    Attributes:
        folder: private and empty; whoever made it removes it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Start without columns.

        Args:
            folder: where files are made.
            limit: the most bytes of one column.
        """
        self.folder = folder
        self._limit = limit
        self._columns: dict[str, tuple[BinaryIO, tuple[int, ...], Any]] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        for stream, _, _ in self._columns.values():
            stream.close()

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order of arrival."""
        return tuple(self._columns)

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Append rows to a column.

        Raises:
            UntrustedFile: other rows than before in width or type, or too many.
            DiskFull: no room.
        """
        if name not in self._columns:
            if len(self._columns) >= _MAX_COLUMNS:
                raise _refused(f"at most {_MAX_COLUMNS:,} columns", name, "more")
            file = self.folder / f"{len(self._columns):05d}"
            with typed_errors(self.folder):
                self._columns[name] = (file.open("x+b"), tuple(rows.shape[1:]), rows.dtype)
        stream, row, dtype = self._columns[name]
        if row != tuple(rows.shape[1:]) or dtype != rows.dtype:
            raise _refused("one width and type for all rows of a column", name, f"{rows.shape[1:]} after {row}")
        if stream.tell() + rows.nbytes > self._limit:
            raise _refused(f"at most {self._limit:,} bytes in a column", name, "more")
        with typed_errors(self.folder):
            stream.write(rows.reshape(-1).data.cast("B") if rows.size else b"")

    def column(self, name: str) -> NDArray[Any]:
        """Return a column as an array (n,) or (n, D), mapped from its file."""
        stream, row, dtype = self._columns[name]
        with typed_errors(self.folder):
            stream.flush()
        width = int(np.prod(row, dtype=np.int64)) * dtype.itemsize
        count = stream.tell() // width if width else 0
        if not count:
            return np.empty((0, *row), dtype)
        mapped: NDArray[Any] = np.memmap(Path(stream.name), dtype, "r", shape=(count, *row))
        return mapped


def _refused(rule: str, name: str, found: str) -> UntrustedFile:
    return UntrustedFile("the file is not trusted", needed=rule, found=found, where=f"column {name[:80]}")
