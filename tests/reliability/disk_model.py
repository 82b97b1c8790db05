"""A disk that forgets: operations are logged as a job runs, and any state that a crash may leave can be made again.

A process that is killed leaves everything it did. A power cut leaves what was forced to the disk, and of the rest any
subset of 512-byte sectors and of changes of directories. Renames are atomic; nothing else is.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.reliability.job import QuickFiles

SECTOR = 512
_PROCESS = re.compile(r"(\.tmp-.+-)\d+(-[0-9a-f]{8})")
_NO_PROCESS = 2**22 + 1  # above the largest process id that Linux gives


@dataclass(frozen=True)
class Operation:
    """One logged call."""

    name: str
    arguments: tuple[Any, ...]


class LoggedFiles(QuickFiles):
    """Does what it is asked for below `root`, and logs it."""

    def __init__(self, root: Path) -> None:
        self.log: list[Operation] = []
        self._root = root

    def _note(self, name: str, *arguments: Any) -> None:
        parts = (a.relative_to(self._root).parts if isinstance(a, Path) else a for a in arguments)
        self.log.append(Operation(name, tuple(parts)))

    def acknowledge(self, shard: int) -> None:
        """Note that the job was told: this shard is safe."""
        self._note("acknowledge", shard)

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        """As `FileOps`."""
        fd = super().open(path, flags, mode)
        self._note("opened", fd, path, bool(flags & os.O_CREAT))
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        """As `FileOps`."""
        at = os.lseek(fd, 0, os.SEEK_CUR)
        written = super().write(fd, data)
        self._note("write", fd, at, bytes(data[:written]))
        return written

    def fsync(self, fd: int) -> None:
        """As `FileOps`."""
        self._note("fsync", fd)

    def rename(self, source: Path, target: Path) -> None:
        """As `FileOps`."""
        super().rename(source, target)
        self._note("rename", source, target)

    def link(self, source: Path, target: Path) -> None:
        """As `FileOps`."""
        super().link(source, target)
        self._note("link", source, target)

    def unlink(self, path: Path) -> None:
        """As `FileOps`."""
        super().unlink(path)
        self._note("unlink", path)

    def mkdir(self, path: Path) -> None:
        """As `FileOps`."""
        super().mkdir(path)
        self._note("mkdir", path)


@dataclass
class _File:
    safe: bytes = b""
    unforced: list[tuple[int, bytes]] = field(default_factory=list)

    def content(self, keep: Callable[[], bool]) -> bytes:
        """What is there if only some of the unforced sectors reached the disk."""
        data, size = bytearray(self.safe), len(self.safe)
        for at, written in self.unforced:
            place = at
            while place < at + len(written):
                end = min(at + len(written), (place // SECTOR + 1) * SECTOR)
                if keep():
                    data.extend(bytes(max(0, end - len(data))))
                    data[place:end] = written[place - at : end - at]
                place = end
            size = max(size, at + len(written))
        if keep():  # the new length may reach the disk without the data
            data.extend(bytes(size - len(data)))
        return bytes(data)

    def force(self) -> None:
        """All of it is safe now."""
        self.safe, self.unforced = self.content(lambda: True), []


@dataclass
class _Folder:
    safe: dict[str, _File | _Folder] = field(default_factory=dict)
    unforced: list[dict[str, _File | _Folder | None]] = field(default_factory=list)
    now: dict[str, _File | _Folder] = field(default_factory=dict)

    def change(self, entries: dict[str, _File | _Folder | None]) -> None:
        """Names that point elsewhere, or (None) nowhere."""
        self.unforced.append(entries)
        _change(self.now, entries)

    def entries(self, keep: Callable[[], bool]) -> dict[str, _File | _Folder]:
        """What is there if only some of the unforced changes reached the disk."""
        found = dict(self.safe)
        for entries in self.unforced:
            if keep():
                _change(found, entries)
        return found

    def force(self) -> None:
        """All of it is safe now."""
        self.safe, self.unforced = dict(self.now), []


def _change(names: dict[str, _File | _Folder], entries: dict[str, _File | _Folder | None]) -> None:
    for name, node in entries.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """Replays a log, and makes any state that a crash may leave.

    Attributes:
        acknowledged: shards acknowledged so far.
    """

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self._root = _Folder()
        self._open: dict[int, _File | _Folder] = {}

    def play(self, operations: Sequence[Operation]) -> None:
        """Do these next."""
        for operation in operations:
            getattr(self, f"_{operation.name}")(*operation.arguments)

    def leave(self, target: Path, rng: random.Random | None = None) -> None:
        """Make the state in `target`: everything (a killed process), or with `rng` what a power cut leaves."""
        share = 1.0 if rng is None else rng.choice([0.0, 0.1, 0.5, 0.9, rng.random()])
        keep = (lambda: True) if rng is None else (lambda: rng.random() < share)
        _make(self._root, target, keep)

    def _at(self, parts: tuple[str, ...]) -> tuple[_Folder, str]:
        folder = self._root
        for part in parts[:-1]:
            inner = folder.now[part]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder, parts[-1] if parts else ""

    def _acknowledge(self, shard: int) -> None:
        self.acknowledged.append(shard)

    def _opened(self, fd: int, parts: tuple[str, ...], creates: bool) -> None:
        folder, name = self._at(parts)
        if creates and name not in folder.now:
            folder.change({name: _File()})
        self._open[fd] = folder.now[name] if name else folder

    def _write(self, fd: int, at: int, data: bytes) -> None:
        file = self._open[fd]
        assert isinstance(file, _File)
        file.unforced.append((at, data))

    def _fsync(self, fd: int) -> None:
        self._open[fd].force()

    def _rename(self, source: tuple[str, ...], target: tuple[str, ...]) -> None:
        folder, old = self._at(source)
        folder.change({old: None, self._at(target)[1]: folder.now[old]})

    def _link(self, source: tuple[str, ...], target: tuple[str, ...]) -> None:
        folder, old = self._at(source)
        folder.change({self._at(target)[1]: folder.now[old]})

    def _unlink(self, parts: tuple[str, ...]) -> None:
        folder, name = self._at(parts)
        folder.change({name: None})

    def _mkdir(self, parts: tuple[str, ...]) -> None:
        folder, name = self._at(parts)
        folder.change({name: _Folder()})


def _make(folder: _Folder, target: Path, keep: Callable[[], bool]) -> None:
    target.mkdir(exist_ok=True)
    for name, node in folder.entries(keep).items():
        place = target / _PROCESS.sub(rf"\g<1>{_NO_PROCESS}\2", name)
        if isinstance(node, _Folder):
            _make(node, place, keep)
        else:
            place.write_bytes(node.content(keep))


def half_done(operation: Operation) -> Operation | None:
    """A write that stopped half-way; None for what cannot be half done."""
    if operation.name != "write" or len(operation.arguments[2]) < 2:
        return None
    fd, at, data = operation.arguments
    return Operation("write", (fd, at, data[: len(data) // 2]))
