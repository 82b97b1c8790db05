"""F1: writers killed with signal 9 at random moments and started again until the job is done."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from probing.errors import ProbingError
from probing.states.store import Store
from probing.states.store.format import parse_signed, record_file
from tests.reliability.children import ask, start
from tests.reliability.job import Job
from tests.reliability.naive_writer import naive_found, naive_write
from tests.reliability.tally import Tally

Write = Callable[[Path, Callable[[int], None], int], None]


class Crew:
    """Some writers of one store, each a process; a writer that ended is started again."""

    def __init__(self, path: Path, write: Write, n_writers: int) -> None:
        self.path = path
        self.acknowledged: set[int] = set()
        self._write = write
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[0], False)
        self._members: list[int] = [self._hire(number) for number in range(n_writers)]

    def _hire(self, number: int) -> int:
        def work() -> None:
            self._write(self.path, lambda shard: os.write(self._pipe[1], f"{shard}\n".encode()) and None, number)

        return start(work, output=self._output.fileno())

    def kill_one(self, number: int) -> bool:
        """Kill -9 a writer and start it again; whether it was at work."""
        os.kill(self._members[number], signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(self._members[number], 0)[1])
        self.listen()
        self._members[number] = self._hire(number)
        return killed

    def finish(self) -> list[int]:
        """Wait for all; their exit statuses."""
        codes = [os.waitstatus_to_exitcode(os.waitpid(member, 0)[1]) for member in self._members]
        self.listen()
        self._output.close()
        for end in self._pipe:
            os.close(end)
        return codes

    def listen(self) -> None:
        """Hear what was acknowledged until now."""
        try:
            while said := os.read(self._pipe[0], 65536):
                self.acknowledged |= {int(line) for line in said.split()}
        except BlockingIOError:
            return


class Ledger:
    """The bytes of every acknowledged shard and its record, as first seen: they must stay."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[str, str]] = {}

    def problems(self, path: Path, acknowledged: set[int]) -> list[tuple[str, str]]:
        """What became of acknowledged shards."""
        found = []
        for shard in sorted(acknowledged):
            try:
                record = (path / "shards" / record_file(shard)).read_bytes()
                data = (path / "shards" / parse_signed(record)["file"]).read_bytes()
            except (OSError, ValueError) as error:
                found.append(("lost", f"shard {shard}: {error}"))
                continue
            if hashlib.sha256(data).hexdigest() != parse_signed(record)["sha256"]:
                found.append(("wrong", f"shard {shard} is not what its record says"))
            now = (hashlib.sha256(record).hexdigest(), hashlib.sha256(data).hexdigest())
            if self._first.setdefault(shard, now) != now:
                found.append(("wrong", f"shard {shard} changed"))
        return found


def shard_bytes(path: Path) -> dict[str, bytes]:
    """Shard files that records name."""
    records = [parse_signed(file.read_bytes()) for file in sorted((path / "shards").glob("s??????.json"))]
    return {record["file"]: (path / "shards" / record["file"]).read_bytes() for record in records}


def finished_problems(path: Path, job: Job, whole: dict[str, bytes]) -> list[tuple[str, str]]:
    """What is wrong with a store that is said to be finished."""
    try:
        problems = [("wrong", problem) for problem in Store.open(path).verify()]
    except ProbingError as error:
        return [("lost", f"{error.message}: {error.found}")]
    problems += [("wrong", f"shard {k}") for k in job.wrong(job.found(path))]
    if shard_bytes(path) != whole:
        problems.append(("wrong", "other bytes than an uninterrupted run"))
    return problems


def killed(folder: Path, tally: Tally, job: Job, n_writers: int, kills: int) -> None:
    """Kill a writer again and again, over as many stores as that takes."""
    began = time.perf_counter()
    job.write(folder / "whole")
    length = time.perf_counter() - began
    whole, moments, done, part = shard_bytes(folder / "whole"), random.Random(n_writers), 0, 0
    while done < kills:
        path, ledger = folder / f"store{n_writers}-{part}", Ledger()
        crew, part = Crew(path, lambda at, say, number: _rotated(job, at, say, number), n_writers), part + 1
        while done < kills and not (path / "seal.json").exists():
            time.sleep(moments.uniform(0, 0.5 * length))
            done += crew.kill_one(moments.randrange(n_writers))
            tally.problems += ledger.problems(path, crew.acknowledged)
        tally.add("crash", [code for code in crew.finish() if code], f"exit status with {n_writers} writers")
        tally.problems += ledger.problems(path, crew.acknowledged)
        tally.problems += finished_problems(path, job, whole)
        tally.done["acknowledged"] += len(crew.acknowledged)
        shutil.rmtree(path)
    tally.done[f"kills of {n_writers} writer{'s' if n_writers > 1 else ''}"] = done
    shutil.rmtree(folder / "whole")


def _rotated(job: Job, path: Path, acknowledge: Callable[[int], None], number: int) -> None:
    first = 5 * number
    job.write(path, acknowledge=acknowledge, order=[(first + k) % job.n_shards for k in range(job.n_shards)])


def naive_killed(folder: Path, job: Job, kills: int) -> list[tuple[str, str]]:
    """The same to the careless writer."""
    problems, moments = [], random.Random(0)
    for number in range(kills):
        path = folder / f"naive{number}"
        crew = Crew(path, lambda at, say, _: naive_write(at, job, say), 1)
        end = time.monotonic() + 5
        while not crew.acknowledged and time.monotonic() < end:
            crew.listen()
        time.sleep(moments.uniform(0, 0.01))
        crew.kill_one(0)
        crew.finish()
        found, ended = ask(lambda path=path: [sorted(naive_found(path, job)), job.wrong(naive_found(path, job))])
        problems += [(ended, "while reading")] if ended else []
        problems += [] if ended else [("lost", f"{k}") for k in crew.acknowledged - set(found[0])]
        problems += [] if ended else [("wrong", f"{k}") for k in found[1]]
        shutil.rmtree(path)
    return problems


def random_kills(folder: Path, *, kills: int, naive_kills: int, n_shards: int = 24) -> Tally:
    """F1: so many kills of one writer, and as many of four."""
    tally = Tally("F1", "0 acknowledged shards lost, 0 corrupt, final bytes those of an uninterrupted run")
    for n_writers in (1, 4):
        killed(folder, tally, Job(n_shards), n_writers, kills)
    tally.add_naive(naive_killed(folder, Job(64), naive_kills))
    return tally
