"""F5 of leases: a damaged one is nobody's claim, ends within seconds, and costs no shard."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from probing.errors import ProbingError, StoreBusy
from probing.states.store import Store, collect, garbage, remove, store_info
from probing.states.store.file_ops import host_name
from probing.states.store.format import signed_json
from probing.states.store.leases import UNWRITTEN_SECONDS, Leases
from tests.reliability.job import Job, QuickFiles

KINDS = ("flip", "cut", "swapped", "foreign", "nonsense", "missing")
NONSENSE = (
    b"null\n",
    b"[]\n",
    b"[" * 5000,
    b"\xff\xfe{",
    b'{"pid":1e999}\n',
    b"9" * 5000,
    b"\0" * 4096,
    signed_json({"host": ["here"], "pid": -1, "shard": 2, "token": None}),
    signed_json({"host": host_name(), "pid": 2**70}),
)
DONE, FREE = (0, 1), 2  # shards that are acknowledged; the one that the damaged lease is of
Problem = tuple[str, str]


class Unfinished:
    """A store that lacks a shard, with a lease of it and of one that is done."""

    def __init__(self, path: Path) -> None:
        self.path, self.job = path, Job(3)
        writer = self.job.open(path, QuickFiles())
        for shard in DONE:
            writer.commit(shard, self.job.content(shard))
        for shard in (DONE[0], FREE):
            Leases(path, QuickFiles()).take(shard)
        self.files = {file.relative_to(path): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}

    def lease(self, shard: int) -> Path:
        """Where a lease lies."""
        return self.path / "leases" / f"s{shard:06d}.json"

    def bytes_of(self, shard: int) -> bytes:
        """A lease as it was."""
        return self.files[self.lease(shard).relative_to(self.path)]

    def restore(self) -> None:
        """Make the directory again."""
        shutil.rmtree(self.path, ignore_errors=True)
        for name, data in self.files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(data)


def leases_damaged(folder: Path, count: int, rng: random.Random) -> list[Problem]:
    """Damage a lease so often, each kind in turn, and let it be as old as chance will have it."""
    store, other = Unfinished(folder / "leased"), Unfinished(folder / "leased-otherwise")
    problems = []
    for number in range(count):
        what, is_sound = _damage(KINDS[number % len(KINDS)], store, other, rng)
        age = rng.choice([0, 0, 2 * UNWRITTEN_SECONDS])
        for file in (store.path / "leases").iterdir():
            os.utime(file, (time.time() - age,) * 2)
        problems += judge(store, f"{what}, {age} s old", is_over=not is_sound and age > 0, is_sound=is_sound)
        store.restore()
    for one in (store, other):
        shutil.rmtree(one.path)
    return problems


def _damage(kind: str, store: Unfinished, other: Unfinished, rng: random.Random) -> tuple[str, bool]:
    """Damage the lease of the free shard; what was done, and whether it can still be read as somebody's lease."""
    path, data = store.lease(FREE), bytearray(store.bytes_of(FREE))
    if kind == "flip":
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        return f"bit flipped in byte {place} of a lease", False
    if kind == "cut":
        size = rng.choice([0, rng.randrange(len(data)), len(data) - 1])
        path.write_bytes(data[:size])
        return f"a lease cut to {size} bytes", False
    if kind == "swapped":
        path.write_bytes(store.bytes_of(DONE[0]))
        store.lease(DONE[0]).write_bytes(data)
        return "two leases swapped", True
    if kind == "foreign":
        path.write_bytes(other.bytes_of(FREE))
        return "a lease of another store", True
    if kind == "nonsense":
        data = bytearray(rng.choice(NONSENSE))
        path.write_bytes(data)
        return f"a lease that says {bytes(data[:20])!r}", b"self_sha256" in data
    path.unlink()
    return "a lease missing", False


def judge(store: Unfinished, what: str, *, is_over: bool, is_sound: bool) -> list[Problem]:
    """Problems after damage: a shard lost or wrong, a claim that nobody made, an error without a type, no way on."""
    problems = []
    try:
        problems += _held_and_taken(store, what, is_over=is_over, is_sound=is_sound)
        store_info(store.path)
        if Store.open(store.path, allow_partial=True).verify():
            problems.append(("wrong", f"{what}: taken for damage of the store"))
        collect(garbage(store.path, files=QuickFiles()), files=QuickFiles())
        problems += _shards(store, what, set(DONE))
        store.job.write(store.path, QuickFiles())
        problems += _shards(store, what, {*DONE, FREE})
        store.lease(DONE[0]).unlink(missing_ok=True)
        problems += _removed(store, what)
    except ProbingError as error:
        problems.append(("lost", f"{what}: {error}"))
    except Exception as error:
        problems.append(("crash", f"{what}: {error!r}"))
    return problems


def _held_and_taken(store: Unfinished, what: str, *, is_over: bool, is_sound: bool) -> list[Problem]:
    leases, problems = Leases(store.path, QuickFiles()), []
    holder = leases.held().get(FREE)
    if holder is not None and holder.pid and not is_sound:
        problems.append(("wrong", f"{what}: a claim of process {holder.pid} that nobody made"))
    try:
        leases.take(FREE).release()
    except StoreBusy:
        problems += [("hang", f"{what}: still counts")] if is_over else []
    return problems


def _shards(store: Unfinished, what: str, wanted: set[int]) -> list[Problem]:
    found = store.job.found(store.path)
    wrong = [("wrong", f"{what}: shard {shard}") for shard in store.job.wrong(found)]
    return wrong + [("lost", f"{what}: shard {shard}") for shard in sorted(wanted - set(found))]


def _removed(store: Unfinished, what: str) -> list[Problem]:
    """A store is removed whole, or refused whole: half of one would be a shard lost."""
    try:
        left = remove(store.path, files=QuickFiles())
    except StoreBusy:
        return _shards(store, f"{what}: refused removal", {*DONE, FREE})
    return [("wrong", f"{what}: {left} left")] if left else []
