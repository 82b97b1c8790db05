"""The careless double: one HDF5 file that every shard is appended to in place, never forced to the disk."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from probing.states.store import FileOps
from tests.reliability.job import WIDTHS, Acknowledge, Job

FILE = "states.h5"


class _Seam(io.RawIOBase):
    """A file that HDF5 reads and writes through `FileOps`."""

    def __init__(self, files: FileOps, path: Path) -> None:
        self._files = files
        self._fd = files.open(path, os.O_RDWR | os.O_CREAT)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return os.lseek(self._fd, offset, whence)

    def tell(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def readinto(self, buffer: Any) -> int:
        return os.readv(self._fd, [buffer])

    def write(self, buffer: Any) -> int:
        return self._files.write(self._fd, memoryview(buffer).cast("B"))

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        end = os.lseek(self._fd, 0, os.SEEK_END)
        if size > end:
            self._files.write(self._fd, memoryview(bytes(size - end)))
        return size

    def close(self) -> None:
        if not self.closed:
            self._files.close(self._fd)
        super().close()


@contextmanager
def _opened(path: Path, files: FileOps | None) -> Iterator[Any]:
    if files is None:
        with h5py.File(path, "a") as file:
            yield file
        return
    with _Seam(files, path) as seam:
        is_new = os.fstat(seam._fd).st_size == 0
        with h5py.File(seam, "w" if is_new else "r+") as file:
            yield file


def naive_write(path: Path, job: Job, acknowledge: Acknowledge, *, files: FileOps | None = None) -> None:
    """Append the missing shards.

    Args:
        path: a directory; made if it is not there.
        job: what to write.
        acknowledge: told each shard as soon as HDF5 took it.
        files: seam; the file is then closed after each shard, the best that appending can do. None: a plain file, open
            until all is done, as in a notebook.
    """
    if not path.is_dir():
        (files or FileOps()).mkdir(path)
    missing = set(range(job.n_shards)) - set(naive_found(path, job))
    if files is None:
        with _opened(path / FILE, None) as file:
            for shard in sorted(missing):
                _append(file, job, shard)
                acknowledge(shard)
        return
    for shard in sorted(missing):
        with _opened(path / FILE, files) as file:
            _append(file, job, shard)
        acknowledge(shard)


def _append(file: Any, job: Job, shard: int) -> None:
    for site in WIDTHS:
        states = job.states(shard, site)
        if site not in file:
            file.create_dataset(site, (0, states.shape[1]), np.float32, maxshape=(None, states.shape[1]), chunks=True)
        dataset = file[site]
        dataset.resize(len(dataset) + len(states), axis=0)
        dataset[-len(states) :] = states
    if "done" not in file:
        file.create_dataset("done", (0,), np.int64, maxshape=(None,), chunks=True)
    file["done"].resize(len(file["done"]) + 1, axis=0)
    file["done"][-1] = shard


def naive_found(path: Path, job: Job) -> dict[int, bytes]:
    """The states of each shard that is said to be done; run it where a crash does no harm."""
    if not (path / FILE).exists():
        return {}
    found = {}
    try:
        with h5py.File(path / FILE, "r") as file:
            for place, shard in enumerate(file["done"][:] if "done" in file else []):
                rows = [file[site][place * len(job.states(0, site)) :][: len(job.states(0, site))] for site in WIDTHS]
                found[int(shard)] = b"".join(part.tobytes() for part in rows)
    except (OSError, RuntimeError, KeyError, ValueError):
        return {}
    return found
