"""Converts errors of the operating system to errors of this package, each with a reason and a next step; checks folders
and devices before work begins.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from probing.errors import BadParameter, CannotReachFile, DiskFull, NotEnoughMemory, ProbingError

P = ParamSpec("P")
R = TypeVar("R")

_KEPT = "then run the same command again: what is done is kept"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STEPS = {
    errno.EACCES: "choose a place that is yours, or change the permissions",
    errno.EPERM: "choose a place that is yours, or change the permissions",
    errno.EROFS: "choose a place on a disk that can be written to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "choose another place: a part of this path is a file, and no folder",
    errno.EISDIR: "choose another place: this is a folder, and no file",
    errno.EEXIST: "choose another place: there is something else by this name",
    errno.ENOTEMPTY: "choose another place: there is something else by this name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "choose a path without a circle of symbolic links",
    errno.EMFILE: f"raise the limit of open files (ulimit -n), {_KEPT}",
    errno.ENFILE: f"close other programs, {_KEPT}",
    errno.EAGAIN: f"raise the limit of processes (ulimit -u), or run less at once, {_KEPT}",
    errno.ESTALE: f"check the network file system, {_KEPT}",
    errno.EIO: f"check the disk, {_KEPT}",
}
# Words of allocators and of what they serve: PyTorch, OpenMP, joblib, C++, the dynamic loader, Rust, threads.
_NO_MEMORY = re.compile(
    r"can't (start new thread|allocate memory)|cannot allocate (memory|write|buffer)|not enough memory|out of memory"
    r"|bad_alloc|failed to map segment|unable to allocate|memory allocation|thread creation failed|\bENOMEM\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?:os error |errno = |\[Errno |Error )(\d+)\b")


def typed(error: BaseException) -> ProbingError | None:
    """Return the error of this package that corresponds to an error of the operating system or a lack of memory; None
    for other errors.
    """
    if isinstance(error, ProbingError):
        return error
    if _is_want_of_memory(error):
        return NotEnoughMemory(
            "not enough memory",
            found=_words(error),
            next_step=f"free some, raise the limit on it, or use fewer workers or threads; {_KEPT}",
        )
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return BadParameter("a name holds a null character", found=str(error), next_step="choose another name")
    number = _number(error)
    if number is None and not isinstance(error, OSError):
        return None
    where = _where(error)
    if number in _FULL:
        return DiskFull(
            "no room left on the disk", found=_words(error), where=where, next_step=f"free some space, {_KEPT}"
        )
    if not where and number == errno.ENOENT and not _has_working_directory():
        return CannotReachFile(
            "the working directory is gone",
            needed="a working directory that exists",
            found=_words(error),
            next_step="change to another folder (cd) and run the same command again",
        )
    step = _STEPS.get(number or 0, f"see to the cause, {_KEPT}")
    return CannotReachFile("a file or folder cannot be used", found=_words(error), where=where, next_step=step)


def _is_want_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, Exception) and bool(_NO_MEMORY.search(str(error)))


def _number(error: BaseException) -> int | None:
    """Return the operating system's number of an error, which some libraries only name in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    is_of_files = isinstance(error, OSError | ImportError) or type(error).__name__ in (
        "SafetensorError",
        "ArrowException",
    )
    match = _NUMBER.search(str(error)) if is_of_files else None
    return int(match[1]) if match else None


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).strip()[:500]


def _where(error: BaseException) -> str:
    names = (getattr(error, name, None) for name in ("filename", "filename2"))
    return " and ".join(
        os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in names if name is not None
    )


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def check_target(folder: Path) -> None:
    """Check that a folder exists or can be made, and is writable, before work begins whose results go there.

    Raises:
        CannotReachFile: the folder cannot be used; the message says why.
    """
    with typed_errors():
        place, status = folder, _status(folder)
        while status is None:
            place = place.parent
            status = _status(place)
            if status is None and place == place.parent:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        if not status.st_nlink:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not os.access(place, os.W_OK | os.X_OK):
            number = errno.EROFS if _is_read_only(place) else errno.EACCES
            raise OSError(number, os.strerror(number), str(place))


def target_of(to: str | Path | None) -> Path | None:
    """Return the folder that results go to, checked before work begins; None if none is asked for.

    Raises:
        CannotReachFile: see `check_target`.
    """
    if to is None:
        return None
    check_target(Path(to))
    return Path(to)


def check_device(device: str) -> None:
    """Refuse a device that PyTorch cannot use here.

    Raises:
        BadParameter: PyTorch does not know the device, this machine has none of its kind, or it computes nothing.
    """
    import torch

    try:
        found = torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise _no_device(device, str(error).splitlines()[0]) from error
    if found.is_meta:
        raise _no_device(device, "meta, whose tensors hold no numbers")


def _no_device(device: str, found: str) -> BadParameter:
    return BadParameter(
        f"no device {device!r}", needed="a device torch can use", found=found, next_step="use device cpu"
    )


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_read_only(place: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(place).f_flag & os.ST_RDONLY)


@contextmanager
def typed_errors() -> Iterator[None]:
    """Within the block, raise errors of the operating system as `MachineError` (not enough memory, an unusable file),
    `DiskFull` or `BadParameter`.
    """
    try:
        yield
    except Exception as error:
        found = typed(error)
        if found is None or found is error:
            raise
        raise found from error


def with_typed_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that errors of the operating system are raised as errors of this package, and return the
    wrapper.
    """

    @wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> R:
        with typed_errors():
            return function(*arguments, **options)

    return called
