"""F5 of moments: whatever is done to their files and records, they are the right numbers or a typed error."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from probing.errors import ProbingError, StoreError, UnknownName
from probing.states.store import Store
from probing.states.store.format import parse_signed
from tests.reliability.children import ask
from tests.reliability.gathered import NAMES, Name, gather, in_bytes, truth
from tests.reliability.job import Job, QuickFiles

KINDS = ("flip", "cut", "swapped", "foreign", "foreign pair", "missing")
Problem = tuple[str, str]


class Gathered:
    """A sound store with moments, and their files by name."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        job.write(path, QuickFiles())
        for name in NAMES:
            gather(path, job, *name)
        self.folder = path / "moments"
        self.files = {file.name: file.read_bytes() for file in sorted(self.folder.iterdir())}
        self.store = Store.open(path)

    def record_of(self, name: Name) -> str:
        """The name of a record."""
        return f"{name[0]}.{name[1]}.json"

    def file_of(self, name: Name) -> str:
        """The name of the file with the numbers."""
        return str(parse_signed(self.files[self.record_of(name)])["file"])

    def holds_numbers(self, name: Name, place: int) -> bool:
        """Whether a byte of a moments file is one of its numbers, which a reader must compare."""
        entries = parse_signed(self.files[self.record_of(name)])["datasets"].values()
        return any(entry["offset"] <= place < entry["offset"] + entry["nbytes"] for entry in entries)

    def restore(self) -> None:
        """Put every file back."""
        for file in self.folder.iterdir():
            if file.name not in self.files:
                file.unlink()
        for name, data in self.files.items():
            (self.folder / name).write_bytes(data)


def moments_damaged(folder: Path, count: int, rng: random.Random) -> list[Problem]:
    """Damage moments so often, each kind in turn."""
    sound, other = Gathered(folder / "gathered", Job(3)), Gathered(folder / "otherwise", Job(3, salt=1))
    problems = []
    for number in range(count):
        name, is_file = rng.choice(NAMES), rng.random() < 0.5
        what, is_read, is_seen = _damage(KINDS[number % len(KINDS)], sound, other, name, is_file, rng)
        problems += judge(sound, name, what, is_read=is_read, is_seen=is_seen)
        sound.restore()
    for one in (sound, other):
        shutil.rmtree(one.path)
    return problems


def _damage(
    kind: str, sound: Gathered, other: Gathered, name: Name, is_file: bool, rng: random.Random
) -> tuple[str, bool, bool]:
    """Damage the file or the record of moments.

    Returns:
        What was done; whether a reader must refuse it; whether verification must see it.
    """
    target = sound.file_of(name) if is_file else sound.record_of(name)
    data, path = bytearray(sound.files[target]), sound.folder / target
    if kind == "flip":
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        return f"bit flipped in byte {place} of {target}", not is_file or sound.holds_numbers(name, place), True
    if kind == "cut":
        size = rng.choice([0, rng.randrange(len(data)), len(data) - 1])
        path.write_bytes(data[:size])
        return f"{target} cut to {size} bytes", True, True
    if kind == "swapped":
        second = rng.choice([n for n in sound.files if Path(n).suffix == path.suffix and n != target])
        path.write_bytes(sound.files[second])
        (sound.folder / second).write_bytes(data)
        return f"{target} swapped with {second}", True, True
    if kind == "foreign":
        path.write_bytes(other.files[other.file_of(name) if is_file else other.record_of(name)])
        return f"{target} of another run", True, True
    if kind == "foreign pair":  # sound in itself, and of shards that are not here
        for theirs in (other.file_of(name), other.record_of(name)):
            (sound.folder / theirs).write_bytes(other.files[theirs])
        return f"moments {name} of another run", True, True
    path.unlink()
    return f"{target} missing", True, is_file  # without a record there are no moments: no damage


def judge(sound: Gathered, name: Name, what: str, *, is_read: bool, is_seen: bool) -> list[Problem]:
    """Problems after damage: numbers that are wrong or should have been refused, damage not seen, no way back."""
    right = truth(sound.job)
    problems = []
    for one in NAMES:
        try:
            given = in_bytes(Store.open(sound.path).moments(*one))
        except (StoreError, UnknownName):
            continue
        problems += [("wrong", f"{what}: wrong moments {one}")] if given != right[one] else []
        problems += [("wrong", f"{what}: given")] if one == name and is_read and given == right[one] else []
    if is_seen and not Store.open(sound.path).verify():
        problems.append(("wrong", f"{what}: not seen by verification"))
    try:
        again = {one: in_bytes(gather(sound.path, sound.job, *one)) for one in NAMES}
        problems += [("wrong", f"{what}: gathered again they are wrong")] if again != right else []
    except ProbingError as error:
        problems.append(("lost", f"{what}: not gathered again: {error}"))
    found = sound.job.found(sound.path)
    problems += [("lost", f"{what}: shards")] if len(found) < sound.job.n_shards or sound.job.wrong(found) else []
    return problems


def naive_moments(folder: Path, job: Job, count: int) -> list[Problem]:
    """Bits flipped in sums that are kept without a hash: numbers that are wrong and readers that crash."""
    folder.mkdir()
    path, rng, problems = folder / "moments.h5", random.Random(1), []
    states = np.concatenate([job.states(shard, "embed").astype(np.float64) for shard in range(job.n_shards)])
    with h5py.File(path, "w") as file:
        file["sum"], file["cross"] = states.sum(axis=0), states.T @ states
    look: Callable[[], str] = lambda: _naive_read(path)  # noqa: E731
    data, right = path.read_bytes(), _naive_read(path)
    for _ in range(count):
        damaged, place = bytearray(data), rng.randrange(len(data))
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        given, broken = ask(look)
        problems += [(broken, "")] if broken else [("wrong", "")] if given not in ("refused", right) else []
    return problems


def _naive_read(path: Path) -> str:
    try:
        with h5py.File(path, "r") as file:
            return bytes(file["sum"][:].tobytes() + file["cross"][:].tobytes()).hex()
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return "refused"
