"""Laws of the commit protocol: stopped anywhere, out of room anywhere, killed anywhere, no acknowledged shard is lost.

Each law that a careless writer breaks is also run on one (`naive_write`), which must break it.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probing.errors import DiskFull, ProbingError, StoreError
from probing.store import FileOps, Store
from tests import store_samples as sample

_CALLS = (
    "open", "write", "fsync", "close", "rename", "link", "unlink", "mkdir", "listdir", "stat", "free_bytes", "clock",
)  # fmt: skip


class Stopped(BaseException):
    """The process is gone: nothing it would have done next happens."""


class Counted(FileOps):
    """Counts calls and acts at call `at`: `stop` for ever, or fail once with an error number."""

    def __init__(self, at: int | None = None, error: int | None = None, *, half: bool = False) -> None:
        self.at, self.error, self.half = at, error, half
        self.count = 0
        self.dead = False
        self.hit = ""

    def _before(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self.dead:
            raise Stopped
        self.count += 1
        if self.count - 1 != self.at:
            return
        self.hit = name
        if name == "write" and self.half:
            os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self.error is None:
            self.dead = True
            raise Stopped
        if name == "close":
            os.close(arguments[0])
        raise OSError(self.error, os.strerror(self.error))


def _counted(name: str) -> Callable[..., Any]:
    def call(self: Counted, *arguments: Any) -> Any:
        self._before(name, arguments)
        return getattr(FileOps, name)(self, *arguments)

    return call


for _name in _CALLS:
    setattr(Counted, _name, _counted(_name))


class PowerLoss(Counted):
    """As `Counted`, and at the stop everything that was not forced to the disk is taken back."""

    def __init__(self, at: int | None = None, *, half: bool = False) -> None:
        super().__init__(at, half=half)
        self.names: dict[int, Path] = {}
        self.dirty: dict[Path, int] = {}
        self.undo: list[tuple[Path, Callable[[], None]]] = []

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        fd = super().open(path, flags, mode)
        self.names[fd] = path
        if flags & os.O_CREAT:
            self.dirty[path] = 0
            self.undo.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return fd

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self.dirty.pop(self.names[fd], None)
        self.undo = [(folder, back) for folder, back in self.undo if folder != self.names[fd]]

    def rename(self, source: Path, target: Path) -> None:
        before = target.read_bytes() if target.exists() else None
        super().rename(source, target)
        if source in self.dirty:
            self.dirty[target] = self.dirty.pop(source)

        def back() -> None:
            target.replace(source)
            if before is not None:
                target.write_bytes(before)

        self.undo.append((target.parent, back))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        if source in self.dirty:
            self.dirty[target] = 0
        self.undo.append((target.parent, target.unlink))

    def unlink(self, path: Path) -> None:
        data = path.read_bytes()
        super().unlink(path)
        self.undo.append((path.parent, lambda: path.write_bytes(data) and None))

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self.undo.append((path.parent, path.rmdir))

    def lose(self, rng: random.Random) -> None:
        """Empty half of the unforced files; take back the last few of the unforced directory entries."""
        for path in self.dirty:
            if path.exists() and rng.random() < 0.5:
                os.truncate(path, 0)
        for _, back in reversed(self.undo[rng.randint(0, len(self.undo)) :]):
            back()


Write = Callable[[Path, FileOps, list[int]], None]
Found = Callable[[Path], dict[int, Any]]


def careful_write(path: Path, files: FileOps, acknowledged: list[int]) -> None:
    sample.write(path, files=files, acknowledged=acknowledged)


def careful_found(path: Path) -> dict[int, np.ndarray[Any, Any]]:
    """States of `embed` by shard, as a reader sees them."""
    try:
        store = Store.open(path, allow_partial=True)
    except ProbingError:
        return {}
    states = store.read("embed")
    return {shard: states[np.isin(store.rows.example // sample.EXAMPLES, shard)] for shard in store._records}


def naive_write(path: Path, files: FileOps, acknowledged: list[int]) -> None:
    """A careless writer: appends to one file in place, and counts as done whatever is in it."""
    path.mkdir(exist_ok=True)
    for shard in sorted(set(range(sample.N_SHARDS)) - set(naive_found(path))):
        fd = files.open(path / "all.bin", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        states = sample.content(shard).sites["embed"]
        for part in (np.array([shard, len(states)], np.int64).data.cast("B"), states.data.cast("B")):
            files.write(fd, part)
        files.close(fd)
        acknowledged.append(shard)


def naive_found(path: Path) -> dict[int, np.ndarray[Any, Any]]:
    data = (path / "all.bin").read_bytes() if (path / "all.bin").exists() else b""
    found, place = {}, 0
    while place + 16 <= len(data):
        shard, n_rows = (int(n) for n in np.frombuffer(data, np.int64, 2, place))
        end = min(len(data), place + 16 + 4 * n_rows * sample.WIDTH) if 0 <= n_rows < 1000 else len(data)
        found[shard] = np.frombuffer(data[place + 16 : end - (end - place) % 4], np.float32)
        place = end
    return found


def broken_points(
    folder: Path,
    write: Write,
    found: Callable[[Path], dict[int, Any]],
    make: Callable[[int | None], Counted],
    every: int = 1,
) -> tuple[int, list[str]]:
    """Stop at every call in turn, look, resume, look again. Gives the number of points, and what was wrong."""
    whole = make(None)
    write(folder / "whole", whole, [])
    wrong = []
    for at in range(0, whole.count, every):
        path, files, acknowledged = folder / f"stop{at}", make(at), list[int]()
        with contextlib.suppress(Stopped):
            write(path, files, acknowledged)
        if isinstance(files, PowerLoss):
            files.lose(random.Random(at))
        wrong += [f"{at}: lost {shard}" for shard in acknowledged if shard not in found(path)]
        wrong += [f"{at}: wrong {k}" for k, states in found(path).items() if not _is_shard(k, states)]
        with contextlib.suppress(ProbingError):
            write(path, FileOps(), [])
        final = found(path)
        wrong += [f"{at}: after resume {k}" for k in range(sample.N_SHARDS) if not _is_shard(k, final.get(k))]
    return whole.count, wrong


def _is_shard(shard: int, states: Any) -> bool:
    if states is None or not 0 <= shard < sample.N_SHARDS:
        return False
    return np.array_equal(np.ravel(states), sample.content(shard).sites["embed"].ravel())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forcing to the disk is counted but not done: these tests lose data by their own hand."""
    monkeypatch.setattr(FileOps, "fsync", lambda self, fd: None)


def test_a_job_stopped_at_any_call_loses_nothing_and_resumes(tmp_path: Path, quick: None) -> None:
    points, wrong = broken_points(tmp_path, careful_write, careful_found, lambda at: Counted(at, half=True))
    assert points > 60 and wrong == []
    for path in sorted(tmp_path.iterdir())[::10]:
        assert Store.open(path).verify() == []


def test_a_power_cut_at_any_call_loses_nothing_acknowledged(tmp_path: Path, quick: None) -> None:
    points, wrong = broken_points(tmp_path, careful_write, careful_found, lambda at: PowerLoss(at, half=True))
    assert points > 60 and wrong == []


def test_the_same_stops_break_a_careless_writer(tmp_path: Path) -> None:
    _, stopped = broken_points(tmp_path / "a", naive_write_in, naive_found, lambda at: Counted(at, half=True))
    _, cut = broken_points(tmp_path / "b", naive_write_in, naive_found, lambda at: PowerLoss(at))
    assert any("after resume" in line for line in stopped)
    assert any("lost" in line or "wrong" in line for line in cut)


def naive_write_in(path: Path, files: FileOps, acknowledged: list[int]) -> None:
    path.parent.mkdir(exist_ok=True)
    naive_write(path, files, acknowledged)


@pytest.mark.parametrize("skipped", ["files", "folders"])
def test_the_same_power_cuts_break_a_writer_that_skips_an_fsync(tmp_path: Path, quick: None, skipped: str) -> None:
    class Careless(PowerLoss):
        def fsync(self, fd: int) -> None:
            if self.names[fd].is_dir() == (skipped == "folders"):
                Counted.fsync(self, fd)
            else:
                PowerLoss.fsync(self, fd)

    _, wrong = broken_points(tmp_path, careful_write, careful_found, Careless, every=3)
    assert wrong


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EFBIG, DiskFull), (errno.EIO, StoreError)],
)
def test_an_error_at_any_call_is_typed_and_resumable(
    tmp_path: Path, quick: None, number: int, kind: type[ProbingError]
) -> None:
    whole = Counted()
    careful_write(tmp_path / "whole", whole, [])
    failures = 0
    for at in range(0, whole.count, 2 if number == errno.ENOSPC else 7):
        path, files, acknowledged = tmp_path / f"fail{at}", Counted(at, number, half=True), list[int]()
        try:
            careful_write(path, files, acknowledged)
        except kind as error:
            failures += 1
            assert error.where and error.next_step
        assert set(acknowledged) <= set(careful_found(path))
        assert files.hit == "unlink" or not list(path.rglob(".tmp-*"))
        careful_write(path, FileOps(), [])
        assert all(_is_shard(shard, states) for shard, states in careful_found(path).items())
        assert len(careful_found(path)) == sample.N_SHARDS
    assert failures > whole.count / 20


def test_short_writes_are_completed(tmp_path: Path, quick: None) -> None:
    class Short(FileOps):
        def write(self, fd: int, data: memoryview) -> int:
            return super().write(fd, data[:1000])

    careful_write(tmp_path / "store", Short(), [])
    assert Store.open(tmp_path / "store").verify() == []


def test_errors_after_a_rename_or_link_took_place_are_no_errors(tmp_path: Path, quick: None) -> None:
    class Retrying(FileOps):
        """A network file system that answers a repeated request with the error of the second try."""

        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            raise FileExistsError(errno.EEXIST, "File exists")

    acknowledged: list[int] = []
    careful_write(tmp_path / "store", Retrying(), acknowledged)
    assert acknowledged == [0, 1, 2] and Store.open(tmp_path / "store").verify() == []


_KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from probing.store import StoreWriter
from tests import store_samples as sample

path, n_shards, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for round in range(kills + 1):
    child = os.fork()
    if not child:
        writer = StoreWriter.open(path, identity=sample.identity(n_shards=n_shards), environment={})
        for shard in writer.missing():
            writer.commit(shard, sample.content(shard))
            os.write(1, f"{shard}\\n".encode())
        os._exit(0)
    if round < kills:
        time.sleep(random.Random(round).uniform(0.01, 0.12))
        os.kill(child, signal.SIGKILL)
    code = os.waitpid(child, 0)[1]
    records = {k: (path / "shards" / f"s{k:06d}.json") for k in range(n_shards)}
    sizes = {k: file.stat().st_ino for k, file in records.items() if file.exists()}
    os.write(1, f"round {round} {code} {sorted(sizes.items())}\\n".encode())
"""


def test_a_writer_killed_at_random_moments_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path, n_shards, kills = tmp_path / "store", 50, 12
    command = [sys.executable, "-c", _KILLER, str(path), str(n_shards), str(kills)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    acknowledged: set[int] = set()
    seen: dict[int, int] = {}
    killed = 0
    for line in done.stdout.splitlines():
        if not line.startswith("round"):
            acknowledged.add(int(line))
            continue
        _, _, code, listed = line.split(" ", 3)
        killed += int(code) == signal.SIGKILL
        records = dict(ast.literal_eval(listed))
        assert acknowledged <= records.keys()
        assert all(records[shard] == record for shard, record in seen.items()), "a record was replaced"
        seen = records
    assert killed >= 3 and len(seen) == n_shards
    store = Store.open(path)
    assert store.verify() == []
    whole = np.concatenate([sample.content(shard).sites["embed"] for shard in range(n_shards)])
    assert np.array_equal(store.read("embed"), whole)
