"""F9: writers that share a store and do the same shards at the same time, with equal bytes and with different ones."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from probing.states.store import Store
from probing.states.store.format import parse_signed, record_file
from tests.reliability.children import start
from tests.reliability.job import Job
from tests.reliability.tally import Tally

N_WRITERS = 4


def _race(work: Callable[[int, Callable[[str], None]], None]) -> tuple[list[int], list[str]]:
    """All writers at once; their exit statuses and what they said."""
    reader, writer = os.pipe()
    children = [
        start(lambda number=number: work(number, lambda said: os.write(writer, f"{said}\n".encode()) and None))
        for number in range(N_WRITERS)
    ]
    os.close(writer)
    with os.fdopen(reader) as said:
        lines = said.read().splitlines()
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], lines


def _order(n_shards: int, number: int) -> list[int]:
    """Shards nearly in order, so that writers meet at most of them."""
    rng = random.Random(number)
    return sorted(range(n_shards), key=lambda shard: shard + rng.uniform(-1, 1))


def _recorded(path: Path, shard: int) -> str:
    return str(parse_signed((path / "shards" / record_file(shard)).read_bytes())["sha256"])


def race_in_a_store(path: Path, job: Job, *, salted: bool) -> list[tuple[str, str]]:
    """One race; what was wrong."""

    def work(number: int, say: Callable[[str], None]) -> None:
        own = replace(job, salt=number if salted else 0)
        own.write(
            path, order=_order(job.n_shards, number), acknowledge=lambda shard: say(f"{shard} {_recorded(path, shard)}")
        )

    codes, said = _race(work)
    problems = [("crash", f"exit status {code}") for code in codes if code]
    problems += [
        ("wrong", f"shard {shard} changed after it was acknowledged")
        for shard, sha256 in (line.split() for line in said)
        if _recorded(path, int(shard)) != sha256
    ]
    problems += [("wrong", problem) for problem in Store.open(path).verify()]
    found = job.found(path)
    problems += [("lost", f"shard {shard}") for shard in range(job.n_shards) if shard not in found]
    truths = [replace(job, salt=number if salted else 0) for number in range(N_WRITERS)]
    return problems + [
        ("wrong", f"shard {shard} is no writer's")
        for shard, states in found.items()
        if states not in [one.truth(shard) for one in truths]
    ]


def race_over_fixed_names(path: Path, job: Job) -> list[tuple[str, str]]:
    """The careless double: a shard's file has one name whatever is in it, and its record is written after it."""
    path.mkdir(parents=True)

    def work(number: int, say: Callable[[str], None]) -> None:
        own = replace(job, salt=number)
        for shard in _order(job.n_shards, number):
            data = own.truth(shard)
            (path / f"{shard}.bin").write_bytes(data)
            (path / f"{shard}.sha256").write_text(hashlib.sha256(data).hexdigest())

    _race(work)
    hashes = {shard: hashlib.sha256((path / f"{shard}.bin").read_bytes()).hexdigest() for shard in range(job.n_shards)}
    return [("wrong", str(k)) for k, sha256 in hashes.items() if (path / f"{k}.sha256").read_text() != sha256]


def races(folder: Path, *, rounds: int, n_shards: int = 12) -> Tally:
    """F9."""
    tally = Tally("F9", "as a single process; records match shards, none changes after it was acknowledged")
    job = Job(n_shards)
    job.write(folder / "whole")
    single = Store.open(folder / "whole").content_id
    naive: Counter[str] = Counter()
    for number in range(rounds):
        for salted in (False, True):
            path = folder / f"race{number}{salted}"
            tally.problems += race_in_a_store(path, job, salted=salted)
            if not salted and Store.open(path).content_id != single:
                tally.problems.append(("wrong", "other content than a single process"))
            shutil.rmtree(path)
        naive.update(kind for kind, _ in race_over_fixed_names(folder / f"fixed{number}", job))
    tally.done.update({"races of 4 writers": 2 * rounds, "shards": 2 * rounds * n_shards})
    tally.naive = naive
    tally.naive_must_fail = False  # how often the writers meet is up to the machine
    return tally
