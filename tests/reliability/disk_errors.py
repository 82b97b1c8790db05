"""F4: the disk, or the memory, fails at any call: a typed error and exit status 1; the next run completes."""

from __future__ import annotations

import errno
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import typer

from probing import errors
from probing.cli import commands
from probing.errors import ProbingError
from probing.states.store import FileOps, Store
from tests.reliability.children import Ended, ask, run
from tests.reliability.fault_files import Counted, ShortWrites
from tests.reliability.job import Job, QuickFiles
from tests.reliability.naive_writer import naive_found, naive_write
from tests.reliability.tally import Tally

FAILURES: tuple[int | type[BaseException], ...] = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ESTALE,
    errno.EINTR,
    MemoryError,
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ACKNOWLEDGED = re.compile(r"^acknowledged (\d+)$", re.M)


def command(path: Path, job: Job, files: FileOps) -> None:
    """Write a job as the command line would, errors and exit status included."""
    app = typer.Typer(cls=commands._Group, pretty_exceptions_enable=False)

    @app.command()
    def write() -> None:
        job.write(path, files, lambda shard: typer.echo(f"acknowledged {shard}"))

    @app.command()
    def other() -> None:
        """A second command, so that the first has a name."""

    app(["write"])


def judge_failure(path: Path, job: Job, ended: Ended, failed: int | type[BaseException]) -> list[tuple[str, str]]:
    """What is wrong after a run in which something failed, and after the next one, in which nothing does."""
    problems = [(ended.kind, ended.output[-300:])] if ended.kind else []
    if not ended.kind and ended.code not in (0, 1):
        problems.append(("crash", f"exit status {ended.code}"))
    if ended.code == 1:
        problems += _untyped(ended.output, failed)
    found = job.found(path)
    acknowledged = {int(shard) for shard in _ACKNOWLEDGED.findall(ended.output)}
    problems += [("lost", f"shard {shard}") for shard in acknowledged if shard not in found]
    problems += [("wrong", f"shard {shard}") for shard in job.wrong(found)]
    try:
        job.write(path, QuickFiles())
        problems += [("wrong", problem) for problem in Store.open(path).verify()]
    except ProbingError as error:
        return [*problems, ("lost", f"not resumed: {error.message}: {error.found}")]
    return problems + [("wrong", f"shard {shard} after resuming") for shard in job.wrong(job.found(path))]


def _untyped(output: str, failed: int | type[BaseException]) -> list[tuple[str, str]]:
    names = [line.partition(":")[0] for line in output.splitlines() if not line.startswith(("acknowledged", " "))]
    kinds = [kind for kind in (getattr(errors, name, None) for name in names) if isinstance(kind, type)]
    if len(kinds) != 1 or not issubclass(kinds[0], ProbingError):
        return [("crash", f"no typed error: {output[-300:]}")]
    if failed in FULL and kinds[0] is not errors.DiskFull:
        return [("wrong", f"a full disk is called {kinds[0].__name__}")]
    return []


def failing_calls(
    folder: Path, tally: Tally, job: Job, write: Callable[[Path, Job, FileOps], None], every: int
) -> None:
    """Fail once at every n-th call, in each way; writes are first half done."""
    whole = Counted()
    job.write(folder / "whole", whole)
    for failed in FAILURES:
        for at in range(0, whole.count, every):
            path, files = folder / "store", Counted(at, failed, half=True)
            ended = run(lambda path=path, files=files: write(path, job, files))
            where = f"{_name(failed)} at call {at}"
            tally.problems += [(kind, f"{where}: {what}") for kind, what in judge_failure(path, job, ended, failed)]
            tally.done["failing calls"] += 1
            tally.done["typed errors"] += ended.code == 1
            shutil.rmtree(path, ignore_errors=True)


def _name(failed: int | type[BaseException]) -> str:
    return errno.errorcode[failed] if isinstance(failed, int) else failed.__name__


def limited(work: Callable[[], object], most: int) -> Callable[[], object]:
    """`work` where no file may grow beyond so many bytes: the kernel's own refusal, as of a full disk."""

    def limited_work() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return work()

    return limited_work


def full_disks(folder: Path, tally: Tally, job: Job) -> None:
    """Files that may not grow beyond a limit, from nothing to nearly a shard."""
    for most in (0, 1000, 4096, 9000):
        path = folder / "store"
        ended = run(limited(lambda path=path: command(path, job, FileOps()), most))
        problems = judge_failure(path, job, ended, errno.ENOSPC)
        problems += [] if ended.code == 1 else [("wrong", "the full disk was not seen")]
        tally.problems += [(kind, f"files limited to {most} bytes: {what}") for kind, what in problems]
        tally.done["full disks"] += 1
        shutil.rmtree(path, ignore_errors=True)


def _say(shard: int) -> None:
    print(f"acknowledged {shard}", flush=True)


def naive_failures(folder: Path, job: Job, every: int) -> list[tuple[str, str]]:
    """The same to the careless writer: what it said was done, and what is there."""
    counted, problems = Counted(), []
    naive_write(folder / "naive", job, lambda shard: None, files=counted)
    trials: list[tuple[Counted | None, int]] = [
        (Counted(at, errno.ENOSPC, half=True), 0) for at in range(1, counted.count, every)
    ]
    for files, most in [*trials, (None, 20_000), (None, 30_000)]:
        path = folder / "naive-store"
        work = partial(naive_write, path, job, _say, files=files)
        path.mkdir()
        ended = run(limited(work, most) if most else work)
        problems += [("crash", ended.output)] if ended.signal is not None else []
        acknowledged = {int(shard) for shard in _ACKNOWLEDGED.findall(ended.output)}
        found, broken = ask(lambda path=path: [sorted(naive_found(path, job)), job.wrong(naive_found(path, job))])
        problems += [(broken, "while reading")] if broken else []
        problems += [] if broken else [("lost", str(k)) for k in acknowledged - set(found[0])]
        problems += [] if broken else [("wrong", str(k)) for k in found[1]]
        shutil.rmtree(path)
    return problems


def disk_errors(folder: Path, *, every: int, n_shards: int, naive_every: int) -> Tally:
    """F4."""
    tally = Tally("F4", "a typed error, exit status 1, no signal; the next run completes")
    job = Job(n_shards)
    failing_calls(folder, tally, job, command, every)
    full_disks(folder, tally, job)
    job.write(folder / "short", ShortWrites())
    tally.add("wrong", Store.open(folder / "short").verify(), "short writes")
    tally.done["in short writes"] += 1
    tally.add_naive(naive_failures(folder, replace(job, n_shards=3), naive_every))
    return tally
