"""Whole pages are written past the system's cache; whatever the disk makes of that, the file is the same."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
from pathlib import Path

import pytest

from probing.errors import DiskFull
from probing.states.store.file_ops import FileOps, typed_errors, write_temporary
from tests.reliability.children import run
from tests.reliability.disk_errors import limited

PAGE = 4096
REFUSED = 3
SIZES = (0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 5)


class Watched(FileOps):
    """Notes what is written past the cache; fails where it is told to, as file systems do that cannot."""

    def __init__(self, *, refuses_bypass: bool = False, refuses_write: bool = False, most: int = 1 << 30) -> None:
        self.refuses_bypass, self.refuses_write, self.most = refuses_bypass, refuses_write, most
        self.is_on = False
        self.past_cache = 0

    def bypass_cache(self, fd: int, is_on: bool) -> None:
        """As told."""
        if self.refuses_bypass:
            raise OSError(errno.EINVAL, "no such thing")
        self.is_on = is_on  # noted, not done: a file system for temporary files may be one that cannot

    def write(self, fd: int, data: memoryview) -> int:
        """As told."""
        if self.is_on:
            assert len(data) % PAGE == 0 and os.lseek(fd, 0, os.SEEK_CUR) % PAGE == 0
            if self.refuses_write:
                raise OSError(errno.EINVAL, "not so")
        written = super().write(fd, data[: self.most])
        self.past_cache += written * self.is_on
        return written


def paged(size: int, value: int) -> memoryview:
    pages = mmap.mmap(-1, max(size, 1))
    pages[:size] = bytes((value + k) % 251 for k in range(size))
    return memoryview(pages)[:size]


@pytest.mark.parametrize("first", SIZES)
@pytest.mark.parametrize("files", [FileOps(), Watched(), Watched(most=PAGE + 7)], ids=["real", "watched", "short"])
def test_buffers_of_any_sizes_become_the_same_file(tmp_path: Path, files: FileOps, first: int) -> None:
    for rest in itertools.product(SIZES, repeat=2):
        buffers = [paged(size, k) for k, size in enumerate((first, *rest))]
        assert write_temporary(files, tmp_path, *buffers).read_bytes() == b"".join(buffers)


def test_whole_pages_go_past_the_cache_and_nothing_else_does(tmp_path: Path) -> None:
    files = Watched()
    write_temporary(files, tmp_path, paged(2 * PAGE + 9, 1), bytes(PAGE - 9), paged(PAGE, 2), paged(PAGE, 3)[1:])
    assert files.past_cache == 3 * PAGE


@pytest.mark.parametrize("files", [Watched(refuses_bypass=True), Watched(refuses_write=True)], ids=["mode", "write"])
def test_a_file_system_that_cannot_is_written_as_ever(tmp_path: Path, files: Watched) -> None:
    given = paged(3 * PAGE, 1)
    assert write_temporary(files, tmp_path, given).read_bytes() == given
    assert not files.past_cache and not files.is_on


@pytest.mark.parametrize("most", [0, 1000, PAGE, 2 * PAGE + 1])
def test_a_disk_that_fills_up_within_the_pages_is_called_full(tmp_path: Path, most: int) -> None:
    def write() -> None:
        with pytest.raises(DiskFull), typed_errors(tmp_path):
            write_temporary(FileOps(), tmp_path, paged(3 * PAGE, 1))
        raise SystemExit(REFUSED)

    assert run(limited(write, most)).code == REFUSED
    assert not list(tmp_path.iterdir())
