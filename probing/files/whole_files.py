"""Writes files completely or not at all; sealed files also contain a hash of their content."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

try:
    import fcntl
except ImportError:  # a system without such locks: temporary files of killed runs stay
    fcntl = None  # type: ignore[assignment]

_SEAL = "sha256:"
_TEMPORARY = re.compile(r"\..+\.(csv|html|jsonl?|parquet|pdf|png|safetensors|svg)-([a-z0-9_]{8}|[0-9]+)")
_TRIES = 3


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all: if writing fails, the old file stays.

    Raises:
        FileExistsError: a device, a pipe or a socket has this name, which is not replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(errno.EEXIST, "this is no plain file", str(path))
    # Another process that starts just now can sweep the new file away between its creation and its lock.
    for left in reversed(range(_TRIES)):
        try:
            _written(path, content)
        except FileNotFoundError:
            if not left:
                raise
        else:
            return


def _written(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            _lock(stream.fileno())  # until it has its name: who cannot be locked out is alive
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _lock(handle: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system has no locks
        return False
    return True


def sweep(folder: Path) -> list[Path]:
    """Delete the temporary files that killed processes left in a folder (not in subfolders), and return their paths.

    A process holds a lock on each temporary file that it writes, and the lock ends with the process; so a temporary
    file that can be locked is abandoned.
    """
    found = [Path(entry) for entry in _entries(folder) if _TEMPORARY.fullmatch(entry.name)]
    return [path for path in found if _swept(path)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry for entry in entries if entry.is_file(follow_symlinks=False)]


def _swept(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            if not _lock(stream.fileno()):
                return False
            path.unlink()
    except OSError:
        return False  # it got its name, or is not ours to delete
    return True


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Within the block, hold a lock on the folder, so that no other process merges results into it (if the system has
    such locks).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with (folder / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sealed(text: str) -> bytes:
    """Return the text with a last line added that holds the SHA-256 of the text."""
    content = (text if text.endswith("\n") else text + "\n").encode()
    return content + f"{_SEAL}{hashlib.sha256(content).hexdigest()}\n".encode()


def unsealed(content: bytes) -> str | None:
    """Return the text that was given to `sealed`, with its final newline; None if it was changed since or was never
    sealed.
    """
    text = content.rpartition(_SEAL.encode())[0].decode("utf-8", "replace")
    return text if text and sealed(text) == content else None


def read_sealed(path: Path) -> str | None:
    """Return the text of a sealed file; None if the file does not exist or has changed since it was written."""
    try:
        return unsealed(path.read_bytes())
    except OSError:
        return None


def write_parquet(frame: DataFrame, path: Path) -> None:
    """Write a table as Parquet, completely or not at all."""
    write_atomically(path, frame.to_parquet(None, index=False))
