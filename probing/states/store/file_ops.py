"""Durable file operations of the store, all through one class, so that tests can stop or fail at any of them."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from probing.errors import DiskFull, StoreError
from probing.states.store.format import ALIGNMENT

LEASE_SECONDS = 15 * 60
TEMPORARY = re.compile(r"\.tmp-(.+)-(\d+)-[0-9a-f]{8}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class FileOps:
    """Calls the operating system's file operations, one method each, so that tests can replace them."""

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        """Open a file, and return its descriptor."""
        return os.open(path, flags | getattr(os, "O_CLOEXEC", 0), mode)

    def write(self, fd: int, data: memoryview) -> int:
        """Write bytes and return the number written, which may be less than was given."""
        return os.write(fd, data)

    def bypass_cache(self, fd: int, is_on: bool) -> None:
        """Turn direct I/O on or off, by which writes bypass the system's cache; they must then be of whole, aligned
        pages.

        Raises:
            OSError: this file system or operating system does not support it.
        """
        if not hasattr(os, "O_DIRECT"):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        import fcntl

        others = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT
        fcntl.fcntl(fd, fcntl.F_SETFL, others | os.O_DIRECT if is_on else others)

    def fsync(self, fd: int) -> None:
        """Force a file or directory to the disk."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a file descriptor."""
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file atomically, replacing one of that name."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Make a hard link; raise an error if the target exists."""
        target.hardlink_to(source)

    def unlink(self, path: Path) -> None:
        """Remove a name from its directory."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Make one directory in its parent."""
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        """Remove one empty directory."""
        path.rmdir()

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(entry.name for entry in path.iterdir())

    def stat(self, path: Path) -> os.stat_result:
        """Return size and times of a file."""
        return path.stat()

    def touch(self, path: Path) -> None:
        """Set the modification time of a file to the current time of its file server."""
        os.utime(path)

    def free_bytes(self, path: Path) -> int:
        """Return the bytes available to this user on the file system of `path`."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def clock(self) -> float:
        """Return the seconds since the epoch."""
        return time.time()


REAL_FILES = FileOps()


@contextlib.contextmanager
def typed_errors(where: Path) -> Iterator[None]:
    """Within the block, turn errors of the operating system, and lack of memory, into `DiskFull` or `StoreError`."""
    try:
        yield
    except StoreError:
        raise
    except MemoryError as error:
        raise StoreError(
            "not enough memory to write or read the store",
            found=str(error),
            where=str(where),
            next_step="free some memory and run the same command again: what is committed is kept",
        ) from error
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                "no room left on the disk",
                found=str(error),
                where=str(where),
                next_step="free some space and run the same command again: what is committed is kept",
            ) from error
        raise StoreError(
            "the store cannot be written or read",
            found=str(error),
            where=str(where),
            next_step="check the disk and its permissions, then run the same command again",
        ) from error


def write_temporary(files: FileOps, folder: Path, *data: bytes | memoryview) -> Path:
    """Write buffers to a new temporary file in `folder`, force it to the disk, and return its path; if that fails, the
    file is removed.
    """
    path = folder / f".tmp-{host_name()}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            _write(files, fd, data)
            files.fsync(fd)
        finally:
            files.close(fd)
    except BaseException:
        discard(files, path)
        raise
    return path


def _write(files: FileOps, fd: int, data: Sequence[bytes | memoryview]) -> None:
    """Write buffers one after the other; whole pages past the system's cache, which need not find room for them."""
    place = 0
    for buffer in data:
        rest = memoryview(buffer)
        place, pages = place + len(rest), _whole_pages(rest, place)
        rest = rest[_write_past_cache(files, fd, rest[:pages]) if pages else 0 :]
        while rest:
            rest = rest[files.write(fd, rest) :]


def _whole_pages(buffer: memoryview, place: int) -> int:
    """Return the length of the whole pages that a buffer begins with, if it lies on a page's edge in memory and in the
    file.
    """
    address = int(np.frombuffer(buffer, np.uint8).ctypes.data) if len(buffer) >= ALIGNMENT else 1
    return 0 if address % ALIGNMENT or place % ALIGNMENT else len(buffer) // ALIGNMENT * ALIGNMENT


def _write_past_cache(files: FileOps, fd: int, pages: memoryview) -> int:
    """Write past the system's cache, and return the bytes written; none where the file system takes no such write: the
    rest is written as ever.
    """
    try:
        files.bypass_cache(fd, True)
    except OSError:
        return 0
    try:
        return files.write(fd, pages)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 0
    finally:
        files.bypass_cache(fd, False)


def discard(files: FileOps, path: Path) -> None:
    """Remove a file if it exists, without raising an error that would hide the one being handled."""
    with contextlib.suppress(OSError, MemoryError):
        files.unlink(path)


def sync_folder(files: FileOps, folder: Path) -> None:
    """Force the names in a directory to the disk."""
    fd = files.open(folder, os.O_RDONLY)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def make_folders(files: FileOps, folder: Path) -> None:
    """Make a directory and its missing parents, durably."""
    if folder.is_dir():
        return
    make_folders(files, folder.parent)
    with contextlib.suppress(FileExistsError):
        files.mkdir(folder)
    sync_folder(files, folder.parent)


def replace(files: FileOps, source: Path, target: Path, *data: bytes | memoryview) -> None:
    """Rename a file; an error is ignored if `target` holds `data` afterwards and `source` is gone (a network file
    system that retries may report one).
    """
    try:
        files.rename(source, target)
    except OSError:
        if not _holds(target, *data) or source.exists():
            raise


def publish(files: FileOps, folder: Path, name: str, data: bytes) -> bool:
    """Write `data` under a name that does not exist yet, atomically and durably.

    Returns:
        False if the name exists with other bytes, since another writer was first; else True.
    """
    temporary, target = write_temporary(files, folder, data), folder / name
    try:
        won = _link_if_absent(files, temporary, target, data)
    finally:
        discard(files, temporary)
    sync_folder(files, folder)
    return won


def _link_if_absent(files: FileOps, temporary: Path, target: Path, data: bytes) -> bool:
    try:
        files.link(temporary, target)
    except OSError as error:
        if target.exists():
            return _holds(target, data)
        if error.errno not in _NO_LINKS:
            raise
        replace(files, temporary, target, data)
    return True


def _holds(path: Path, *data: bytes | memoryview) -> bool:
    try:
        with path.open("rb") as file:
            return all(file.read(len(buffer)) == buffer for buffer in data) and not file.read(1)
    except OSError:
        return False


def sweep(files: FileOps, folder: Path) -> None:
    """Remove the abandoned temporary files in a folder: those whose writer died on this host, or that are older than
    `LEASE_SECONDS`.
    """
    for name in files.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if TEMPORARY.fullmatch(name) and is_abandoned(files, folder / name):
                files.unlink(folder / name)


def is_abandoned(files: FileOps, temporary: Path) -> bool:
    """Return whether the writer of a temporary file is known to be dead, or the file is older than `LEASE_SECONDS`."""
    match = TEMPORARY.fullmatch(temporary.name)
    dead = match is not None and is_dead_here(match[1], int(match[2]))
    return dead or files.clock() - files.stat(temporary).st_mtime > LEASE_SECONDS


def is_dead_here(host: str, pid: int) -> bool:
    """Return whether a process is known to be dead: it ran on this host and no longer exists."""
    return host == host_name() and not _alive(pid)


def host_name() -> str:
    """Return this host's name in a form that file names may contain."""
    return re.sub(r"[^A-Za-z0-9._]", "_", platform.node()) or "host"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
