"""F5: bits flipped, files cut short, swapped or missing: found at `full` always, at `fast` in whatever is read.

Here shards and their JSON; `lease_damage` does the same to what lies beside them.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from probing.errors import StoreError
from probing.states.store import Store
from probing.states.store.format import parse_signed
from tests.reliability.children import ask
from tests.reliability.job import WIDTHS, Job
from tests.reliability.lease_damage import leases_damaged
from tests.reliability.naive_writer import FILE, naive_found, naive_write
from tests.reliability.tally import Tally

ROWS = ("example", "word", "piece_start", "piece_end", "char_start", "char_end")
Problem = tuple[str, str]


class Original:
    """A sound store, and what is true of it."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        job.write(path)
        self.files = {file.relative_to(path): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
        store = Store.open(path)
        self.states = {site: store.read(site).tobytes() for site in WIDTHS}
        self.rows = {name: getattr(store.rows, name).tobytes() for name in ROWS}

    def read_spans(self, name: Path) -> list[tuple[int, int]]:
        """Byte ranges of a shard file that a reader reads."""
        record = parse_signed(self.files[name.with_name(f"{name.name[:7]}.json")])
        entries = [entry for path, entry in record["datasets"].items() if not path.startswith("/examples/")]
        return [(entry["offset"], entry["offset"] + entry["nbytes"]) for entry in entries]

    def restore(self) -> None:
        """Put every file back."""
        for file in [file for file in self.path.rglob("*") if file.is_file()]:
            if file.relative_to(self.path) not in self.files:
                file.unlink()
        for name, data in self.files.items():
            (self.path / name).write_bytes(data)


def seen_at_full(original: Original) -> bool:
    """Whether opening, reading or verifying the store says that something is wrong."""
    try:
        return bool(Store.open(original.path, verification="full").verify())
    except StoreError:
        return True


def read_at_fast(original: Original) -> str:
    """`refused`, `right` or `wrong`: what a reader at the default level gets."""
    try:
        store = Store.open(original.path)
        states = {site: store.read(site).tobytes() for site in WIDTHS}
        rows = {name: getattr(store.rows, name).tobytes() for name in ROWS}
    except StoreError:
        return "refused"
    return "right" if states == original.states and rows == original.rows else "wrong"


def judge(original: Original, what: str, *, is_read: bool) -> list[Problem]:
    """Problems after damage: it must be seen at `full`, give no wrong row, and be refused at `fast` if it is read."""
    problems = [] if seen_at_full(original) else [("wrong", f"{what}: not seen at full")]
    fast = read_at_fast(original)
    problems += [("wrong", f"{what}: wrong rows at fast")] if fast == "wrong" else []
    problems += [("wrong", f"{what}: not seen at fast")] if is_read and fast == "right" else []
    return problems


def flips(original: Original, count: int, rng: random.Random) -> list[Problem]:
    """Flip a bit somewhere: half of them in shards, half in JSON."""
    problems = []
    for number in range(count):
        name = _some_file(original, rng, ".h5" if number % 2 else ".json")
        data, place = bytearray(original.files[name]), rng.randrange(len(original.files[name]))
        data[place] ^= 1 << rng.randrange(8)
        (original.path / name).write_bytes(data)
        spans = original.read_spans(name) if name.suffix == ".h5" else [(0, len(data))]
        is_read = name.name != "seal.json" and any(start <= place < end for start, end in spans)
        problems += judge(original, f"bit flipped in byte {place} of {name}", is_read=is_read)
        (original.path / name).write_bytes(original.files[name])
    return problems


def cuts(original: Original, count: int, rng: random.Random) -> list[Problem]:
    """Cut a file short."""
    problems = []
    for number in range(count):
        name = _some_file(original, rng, ".h5" if number % 2 else ".json")
        size = rng.choice([0, rng.randrange(len(original.files[name])), len(original.files[name]) - 1])
        (original.path / name).write_bytes(original.files[name][:size])
        problems += judge(original, f"{name} cut to {size} bytes", is_read=name.name != "seal.json")
        (original.path / name).write_bytes(original.files[name])
    return problems


def swaps(original: Original, other: Original, count: int, rng: random.Random) -> list[Problem]:
    """Swap two files of a kind, take one from a store of the same identity and other bytes, or remove one."""
    problems = []
    for _ in range(count):
        kind = rng.choice(["swapped", "foreign", "missing"])
        name = _some_file(original, rng, rng.choice([".h5", ".json"]))
        while (kind, name.name) in (("missing", "seal.json"), ("foreign", "store.json")):
            name = _some_file(original, rng, ".json")  # no damage: there need be no seal, and store.json is the same
        is_read = name.name != "seal.json" or kind == "swapped"
        if kind == "swapped":
            second = rng.choice([n for n in original.files if n.suffix == name.suffix and n != name])
            (original.path / name).write_bytes(original.files[second])
            (original.path / second).write_bytes(original.files[name])
            kind = f"swapped with {second}"
        elif kind == "foreign":
            theirs = next(n for n in other.files if n.name[:7] == name.name[:7] and n.suffix == name.suffix)
            (original.path / name).write_bytes(other.files[theirs])
        else:
            (original.path / name).unlink()
        problems += judge(original, f"{name} {kind}", is_read=is_read)
        original.restore()
    return problems


def _some_file(original: Original, rng: random.Random, suffix: str) -> Path:
    return rng.choice([name for name in original.files if name.suffix == suffix])


def naive_flips(folder: Path, job: Job, count: int) -> list[Problem]:
    """Bits flipped in the careless writer's file: rows that are wrong and readers that crash."""
    folder.mkdir()
    naive_write(folder, job, lambda shard: None)
    data, rng, problems = (folder / FILE).read_bytes(), random.Random(0), []
    look: Callable[[], list[int]] = lambda: job.wrong(naive_found(folder, job))  # noqa: E731
    for _ in range(count):
        damaged, place = bytearray(data), rng.randrange(len(data))
        damaged[place] ^= 1 << rng.randrange(8)
        (folder / FILE).write_bytes(damaged)
        wrong, broken = ask(look)
        problems += [(broken, "")] if broken else [("wrong", str(shard)) for shard in wrong]
    return problems


def damage(folder: Path, *, n_flips: int, n_cuts: int, n_swaps: int, n_leases: int, naive: int) -> Tally:
    """F5."""
    tally = Tally("F5", "100 % detected, 0 wrong rows")
    original, other = Original(folder / "a", Job(3)), Original(folder / "b", Job(3, salt=1))
    rng = random.Random(5)
    tally.problems += flips(original, n_flips, rng)
    tally.problems += cuts(original, n_cuts, rng)
    tally.problems += swaps(original, other, n_swaps, rng)
    tally.done.update({"bit flips": n_flips, "truncations": n_cuts, "swapped or missing files": n_swaps})
    tally.problems += leases_damaged(folder, n_leases, rng)
    tally.done.update({"damaged leases": n_leases})
    tally.add_naive(naive_flips(folder / "naive", Job(3), naive))
    shutil.rmtree(folder / "a")
    return tally
