"""Leases: independent runs share one queue without computing a shard twice, and nothing depends on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from probing.cli.commands import app
from probing.errors import StoreBusy
from probing.executors import _units
from probing.models.language_model import LanguageModel
from probing.provenance import canonical_json
from probing.states import extraction
from probing.states.extraction import extract
from probing.states.store import FileOps, Store, StoreWriter, collect, garbage, remove, store_info
from probing.states.store.file_ops import LEASE_SECONDS
from probing.states.store.format import parse_signed, signed_json
from probing.states.store.leases import UNWRITTEN_SECONDS, Leases
from tests.samples.store_samples import content, identity, write
from tests.samples.tiny_models import build, byte_tokenizer, corpus_of

CORPUS = corpus_of(*(f"the thing {'in ' * (i % 5)}being {i}" for i in range(10)))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """One shard of three is there."""
    path = tmp_path / "s"
    StoreWriter.open(path, identity=identity(), environment={}).commit(0, content(0))
    return path


def lease_file(store: Path, shard: int = 1) -> Path:
    return store / "leases" / f"s{shard:06d}.json"


def age(file: Path, seconds: float) -> None:
    os.utime(file, (time.time() - seconds,) * 2)


def foreign(store: Path, shard: int, **facts: Any) -> Path:
    """A lease of a process on another host."""
    lease_file(store).parent.mkdir(exist_ok=True)
    body = {"host": "elsewhere", "pid": 7, "shard": shard, "token": "t"} | facts
    lease_file(store, shard).write_bytes(signed_json(body))
    return lease_file(store, shard)


class Clock(FileOps):
    """A client whose clock is an hour ahead of the file server's; it counts touches."""

    ahead = 3600.0
    touched = 0

    def clock(self) -> float:
        return time.time() + self.ahead

    def touch(self, path: Path) -> None:
        self.touched += 1
        super().touch(path)


def test_a_shard_has_one_lease_at_a_time(store: Path) -> None:
    leases = Leases(store)
    lease = leases.take(1)
    assert canonical_json(json.loads(lease_file(store).read_bytes())) == lease_file(store).read_bytes()
    assert parse_signed(lease_file(store).read_bytes())["pid"] == os.getpid()
    with pytest.raises(StoreBusy, match="computes shard 1") as error:
        Leases(store).take(1)
    assert str(os.getpid()) in error.value.found
    leases.take(2).release()
    assert set(leases.held()) == {1}
    lease.release()
    assert leases.held() == {} and not list((store / "leases").iterdir())


def test_a_lease_ends_after_fifteen_minutes_by_the_clock_of_the_file_server(store: Path) -> None:
    file, leases = foreign(store, 1), Leases(store, Clock())
    with pytest.raises(StoreBusy):
        leases.take(1)
    age(file, LEASE_SECONDS - 30)
    assert round(leases.held()[1].age) in range(LEASE_SECONDS - 31, LEASE_SECONDS - 20)
    age(file, LEASE_SECONDS + 5)
    assert leases.held() == {}
    leases.take(1)
    assert parse_signed(file.read_bytes())["pid"] == os.getpid()


def test_a_lease_is_renewed_by_touching_at_most_once_a_minute(store: Path) -> None:
    files = Clock()
    lease = Leases(store, files).take(1)
    age(lease_file(store), 800)
    lease.renew()
    assert files.touched == 0
    files.ahead += 61
    lease.renew()
    lease.renew()
    assert files.touched == 1
    assert Leases(store).held()[1].age < 60


def test_the_lease_of_a_process_that_died_here_is_free_at_once(store: Path) -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    Leases(store).take(1)
    mine = parse_signed(lease_file(store).read_bytes())
    foreign(store, 1, host=mine["host"], pid=int(child.stdout))
    assert Leases(store).held() == {}
    Leases(store).take(1)
    with pytest.raises(StoreBusy):
        Leases(store).take(1)


@pytest.mark.parametrize("data", [b"", b'{"host":', b"[1]\n", b"\xff"])
def test_a_lease_whose_writer_was_killed_in_between_counts_for_seconds_only(store: Path, data: bytes) -> None:
    file = foreign(store, 1)
    file.write_bytes(data)
    with pytest.raises(StoreBusy, match="an unknown host"):
        Leases(store).take(1)
    age(file, UNWRITTEN_SECONDS + 5)
    Leases(store).take(1)


def test_a_lease_that_another_took_over_is_left_to_it(store: Path) -> None:
    lease = Leases(store).take(1)
    file = foreign(store, 1)
    lease.release()
    assert file.exists()


def test_gc_takes_expired_leases_only(store: Path) -> None:
    old, live = foreign(store, 1), foreign(store, 2)
    age(old, LEASE_SECONDS + 5)
    assert [(item.path, item.reason) for item in garbage(store)] == [(old, "an expired lease")]
    collect(garbage(store))
    assert not old.exists() and live.exists()


def test_a_store_under_a_live_lease_is_not_removed(store: Path) -> None:
    file = foreign(store, 1)
    result = CliRunner().invoke(app, ["store", "rm", str(store), "--yes"])
    assert result.exit_code == 1 and result.stderr.startswith("StoreBusy: ") and "elsewhere" in result.stderr
    assert (store / "shards" / "s000000.json").exists()
    age(file, LEASE_SECONDS + 5)
    assert remove(store) == [] and not store.exists()


def test_info_names_the_missing_shards_their_examples_and_who_has_them(store: Path) -> None:
    foreign(store, 2)
    first, second = store_info(store)["missing"]
    assert first == {"shard": 1, "examples": [4, 7], "lease": None}
    assert (second["shard"], second["examples"], second["lease"]["host"]) == (2, [8, 11], "elsewhere")
    result = CliRunner().invoke(app, ["store", "info", str(store)])
    assert "missing: shard 1, examples 4 to 7\n" in result.output
    assert "missing: shard 2, examples 8 to 11; process 7 on elsewhere computes it\n" in result.output
    write(store)
    assert "missing" not in store_info(store)


def model() -> LanguageModel:
    return LanguageModel.from_modules(build("gpt2"), byte_tokenizer())


def run(folder: Path, reader: LanguageModel | None = None) -> Store:
    return extract(reader or model(), CORPUS, to=folder, shard_bytes=1500, progress=False)


def reads_of_two_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[int], list[Store]]:
    """Two runs at once; how often each shard was read, by its first example, and the stores they returned."""
    reads, read, lock, found = Counter[int](), extraction.read_shard, threading.Lock(), list[Store]()

    def slow(model: LanguageModel, examples: Any, start: int, *rest: Any) -> Any:
        with lock:
            reads[start] += 1
        time.sleep(0.05)
        return read(model, examples, start, *rest)

    monkeypatch.setattr(extraction, "read_shard", slow)
    monkeypatch.setattr(_units, "POLL_SECONDS", 0.02)
    readers = [model(), model()]  # before the threads: weights are drawn from a generator that these would share
    threads = [threading.Thread(target=lambda one=one: found.append(run(folder, one))) for one in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return reads, found


def test_two_runs_share_one_queue_and_compute_no_shard_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, stores = reads_of_two_runs(tmp_path / "s", monkeypatch)
    assert len(reads) == stores[0].shards_planned >= 5 and set(reads.values()) == {1}
    assert [store.shards_done for store in stores] == [stores[0].shards_planned] * 2
    assert {store.content_id for store in stores} == {run(tmp_path / "alone").content_id}
    assert not list((tmp_path / "s" / "leases").iterdir())


class NoLeases(FileOps):
    """A file system on which a lease can neither be made nor read."""

    def open(self, path: Path, flags: int, mode: int = 0o644) -> int:
        if path.parent.name == "leases":
            raise OSError("no leases here")
        return super().open(path, flags, mode)


def test_without_leases_shards_are_computed_twice_and_the_store_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "Leases", lambda path: Leases(path, NoLeases()))
    reads, stores = reads_of_two_runs(tmp_path / "s", monkeypatch)
    assert max(reads.values()) == 2
    monkeypatch.undo()
    assert {store.content_id for store in stores} == {run(tmp_path / "alone").content_id}


def test_the_shard_of_a_run_that_died_elsewhere_is_computed_once_its_lease_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_units, "POLL_SECONDS", 0.02)
    whole = run(tmp_path / "whole")
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "store.json").write_bytes((tmp_path / "whole" / "store.json").read_bytes())
    file, found = foreign(folder, 2), list[Store]()
    thread = threading.Thread(target=lambda: found.append(run(folder)))
    thread.start()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("shards/s*.json"))) < whole.shards_planned - 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    assert thread.is_alive() and not (folder / "shards" / "s000002.json").exists()
    age(file, LEASE_SECONDS + 5)
    thread.join(60)
    assert found[0].content_id == whole.content_id
