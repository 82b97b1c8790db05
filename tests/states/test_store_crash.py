"""Laws of the commit protocol beyond the reliability figures, and that their machinery can tell a careless writer."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from probing.states.store import Store, remove, repair
from probing.states.store.format import parse_signed, record_file
from tests.reliability.crash_states import careful_log, judge_store, power_cuts, stopped, without
from tests.reliability.disk_model import Disk, LoggedFiles
from tests.reliability.fault_files import Counted, Stopped
from tests.reliability.job import Job, QuickFiles

JOB = Job(3)


@pytest.mark.parametrize("forced", ["files", "folders"])
def test_power_cuts_break_a_writer_that_skips_an_fsync(tmp_path: Path, forced: str) -> None:
    log, is_folder, left_out = careful_log(tmp_path / "log", JOB), dict[int, bool](), []
    for number, operation in enumerate(log):
        if operation.name == "opened":
            fd, place, _ = operation.arguments
            is_folder[fd] = not place or place[-1] in ("store", "shards")
        if operation.name == "fsync" and is_folder[operation.arguments[0]] == (forced == "folders"):
            left_out.append(number)
    assert power_cuts(tmp_path, log, JOB, judge_store, 25) == []
    assert power_cuts(tmp_path, without(log, left_out), JOB, judge_store, 25) != []


@pytest.mark.slow
def test_stops_break_a_writer_that_publishes_the_record_before_the_shard(tmp_path: Path) -> None:
    log = careful_log(tmp_path / "log", JOB)
    links = [n for n, operation in enumerate(log) if operation.name == "link" and "shards" in operation.arguments[1]]
    told = [n for n, operation in enumerate(log) if operation.name == "acknowledge"]
    early = [*log[: links[0]], log[told[0]], *log[links[0] : told[0]], *log[told[0] + 1 :]]
    assert stopped(tmp_path, log, JOB, judge_store, 9)[1] == []
    assert stopped(tmp_path, early, JOB, judge_store)[1] != []


def test_the_disk_keeps_what_was_forced_and_may_lose_the_rest(tmp_path: Path) -> None:
    import os
    import random

    files = LoggedFiles(tmp_path)
    for name, forces in (("kept", True), ("lost", False)):
        fd = files.open(tmp_path / name, os.O_WRONLY | os.O_CREAT)
        files.write(fd, memoryview(b"x" * 2000))
        if forces:
            files.fsync(fd)
        files.close(fd)
    folder = files.open(tmp_path, os.O_RDONLY)
    files.fsync(folder)
    files.close(folder)
    states = set()
    for seed in range(40):
        disk = Disk()
        disk.play(files.log)
        disk.leave(tmp_path / f"state{seed}", random.Random(seed))
        assert (tmp_path / f"state{seed}" / "kept").read_bytes() == b"x" * 2000
        states.add((tmp_path / f"state{seed}" / "lost").read_bytes())
    assert b"" in states and b"x" * 2000 in states and len(states) > 5


def test_errors_after_a_rename_or_link_took_place_are_no_errors(tmp_path: Path) -> None:
    class Retrying(QuickFiles):
        """A network file system that answers a repeated request with the error of the second try."""

        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            raise FileExistsError(errno.EEXIST, "File exists")

    acknowledged: list[int] = []
    JOB.write(tmp_path / "store", Retrying(), acknowledged.append)
    assert acknowledged == [0, 1, 2] and Store.open(tmp_path / "store").verify() == []


def test_a_store_that_another_writer_creates_meanwhile_is_no_foreign_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, listed = tmp_path / "store", Path.iterdir
    path.mkdir()

    def slow(folder: Path) -> object:
        monkeypatch.setattr(Path, "iterdir", listed)
        JOB.write(path, QuickFiles())
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", slow)
    assert JOB.open(path).missing() == []


def _reopen(path: Path, files: QuickFiles) -> None:
    JOB.open(path, files)


def _repair(path: Path, files: QuickFiles) -> None:
    repair(path, files=files)


def _remove(path: Path, files: QuickFiles) -> None:
    remove(path, files=files)


@pytest.mark.parametrize("action", [_reopen, _repair, _remove])
def test_a_seal_never_outlives_a_record_that_it_counts(
    tmp_path: Path, action: Callable[[Path, QuickFiles], None]
) -> None:
    for at in range(60):
        path, files = tmp_path / f"store{at}", Counted(at)
        JOB.write(path, QuickFiles())
        record = parse_signed((path / "shards" / record_file(1)).read_bytes())
        (path / "shards" / record["file"]).unlink()
        with suppress(Stopped):
            action(path, files)
        records = (
            {file.name for file in (path / "shards").glob("s??????.json")} if (path / "shards").is_dir() else set()
        )
        assert len(records) == JOB.n_shards or not (path / "seal.json").exists(), f"stopped at call {at}"
        if not files.hit:
            break
    assert at > 3
