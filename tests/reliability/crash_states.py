"""F2 and F3: every point at which a job may stop, and what a power cut may leave at any of them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from probing.errors import ProbingError
from probing.states.store import Store
from tests.reliability.children import ask
from tests.reliability.disk_model import Disk, LoggedFiles, Operation, half_done
from tests.reliability.job import Job, QuickFiles
from tests.reliability.naive_writer import naive_found, naive_write
from tests.reliability.tally import Tally

Problem = tuple[str, str]
Judge = Callable[[Path, Job, list[int]], list[Problem]]


def careful_log(folder: Path, job: Job) -> list[Operation]:
    """Everything that the store's writer does in an uninterrupted run."""
    folder.mkdir(parents=True)
    files = LoggedFiles(folder)
    job.write(folder / "store", files, files.acknowledge)
    return files.log


def naive_log(folder: Path, job: Job) -> list[Operation]:
    """Everything that the careless writer does."""
    folder.mkdir(parents=True)
    files = LoggedFiles(folder)
    naive_write(folder / "store", job, files.acknowledge, files=files)
    return files.log


def judge_store(path: Path, job: Job, acknowledged: list[int]) -> list[Problem]:
    """What is wrong with a store that a crash left, before and after it was resumed."""
    found = job.found(path)
    problems = [("lost", f"shard {k}") for k in acknowledged if k not in found]
    problems += [("wrong", f"shard {k}") for k in job.wrong(found)]
    try:
        job.write(path, QuickFiles())
        final = job.found(path)
        verified = Store.open(path).verify()
    except ProbingError as error:
        return [*problems, ("lost", f"not resumed: {error.message}: {error.found}")]
    problems += [("lost", f"shard {k} after resuming") for k in range(job.n_shards) if k not in final]
    problems += [("wrong", f"shard {k} after resuming") for k in job.wrong(final)]
    problems += [("wrong", f"after resuming: {problem}") for problem in verified]
    return problems + [("lost", f"left behind: {file.name}") for file in path.rglob(".tmp-*")]


def judge_naive(path: Path, job: Job, acknowledged: list[int]) -> list[Problem]:
    """As `judge_store`, for the careless writer."""

    def look() -> list[Problem]:
        found = naive_found(path, job)
        problems = [("lost", f"shard {k}") for k in acknowledged if k not in found]
        problems += [("wrong", f"shard {k}") for k in job.wrong(found)]
        try:
            naive_write(path, job, lambda shard: None)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            return [*problems, ("lost", f"not resumed: {error}")]
        final = naive_found(path, job)
        return problems + [("wrong", f"shard {k}") for k in range(job.n_shards) if final.get(k) != job.truth(k)]

    answer, ended = ask(look)
    return [(ended, "while reading")] if ended else [(kind, what) for kind, what in answer]


def stop_points(log: list[Operation]) -> Iterator[tuple[int, Operation | None]]:
    """Every number of calls after which a process may be gone, with the half-done next one where there is one."""
    for at, operation in enumerate([*log, None]):
        yield at, None
        half = half_done(operation) if operation else None
        if half:
            yield at, half


def stopped(folder: Path, log: list[Operation], job: Job, judge: Judge, every: int = 1) -> tuple[int, list[Problem]]:
    """Stop at every call; how many points there were, and what was wrong."""
    points = list(stop_points(log))[::every]
    return len(points), [problem for at, half in points for problem in _state(folder, log, at, half, None, job, judge)]


def power_cuts(folder: Path, log: list[Operation], job: Job, judge: Judge, states: int, seed: int = 0) -> list[Problem]:
    """Cut the power at random calls; what was wrong."""
    points = list(stop_points(log))
    problems = []
    for state in range(states):
        rng = random.Random(f"{seed} {state}")
        problems += _state(folder, log, *rng.choice(points), rng, job, judge)
    return problems


def _state(
    folder: Path,
    log: list[Operation],
    at: int,
    half: Operation | None,
    rng: random.Random | None,
    job: Job,
    judge: Judge,
) -> list[Problem]:
    disk, place = Disk(), folder / "state"
    disk.play(log[:at])
    disk.play([half] if half else [])
    disk.leave(place, rng)
    problems = judge(place / "store", job, disk.acknowledged)
    shutil.rmtree(place)
    return [(kind, f"call {at}{' half' if half else ''}: {what}") for kind, what in problems]


def without(log: Iterable[Operation], names: Iterable[int]) -> list[Operation]:
    """The log of a writer that leaves out the calls with these numbers."""
    left_out = set(names)
    return [operation for number, operation in enumerate(log) if number not in left_out]


def crash_points(folder: Path, *, n_shards: int, every: int, naive_every: int) -> Tally:
    """F2."""
    tally = Tally("F2", "100 % of crash points recover")
    job = Job(n_shards)
    points, problems = stopped(folder, careful_log(folder / "log", job), job, judge_store, every)
    tally.done.update({f"stops of a {n_shards}-shard job": points})
    tally.problems += problems
    small = replace(job, n_shards=3)
    log = naive_log(folder / "naive", small)
    tally.add_naive(stopped(folder, log, small, judge_naive, naive_every)[1])
    return tally


def power_loss(folder: Path, *, states: int, naive_states: int) -> Tally:
    """F3."""
    tally = Tally("F3", "0 wrong rows, 0 acknowledged shards lost")
    job = Job(4)
    log = careful_log(folder / "log", job)
    tally.problems += power_cuts(folder, log, job, judge_store, states)
    tally.done["power cuts"] = states
    small = replace(job, n_shards=3)
    naive = naive_log(folder / "naive", small)
    tally.add_naive(power_cuts(folder, naive, small, judge_naive, naive_states))
    return tally
