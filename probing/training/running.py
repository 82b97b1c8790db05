"""Runs a plan: its units by an executor, with a bar; what is done already is not done again."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from probing.contracts.executor import Executor, WorkPlan
from probing.errors import BadParameter, DamagedUnit
from probing.executors._run_until_done import complete
from probing.system.screen import console
from probing.training.plan import Plan
from probing.training.threads import Threads
from probing.training.unit_work import Done, Fitters
from probing.training.units import spoiled_units

_SHOWN = 5


def check_run(executor: Executor, folder: Path | None, num_workers: int, worker_index: int) -> None:
    """Refuse a run of several processes without a folder to share.

    Raises:
        BadParameter: no such worker, or several processes without a folder.
    """
    if not 0 <= worker_index < num_workers:
        raise BadParameter("no such worker", needed=f"0 to {num_workers - 1}", found=str(worker_index))
    if folder is None and (num_workers > 1 or not executor.in_process):
        raise BadParameter(
            "several processes need a folder in which their results meet",
            needed="to=DIR",
            found="no folder",
            next_step="name a folder that all of them see, or use executor='inline'",
        )


def run_plan(plan: Plan, units: WorkPlan, done: Done, executor: Executor, *, progress: bool) -> None:
    """Do the units of the plan that are not yet done.

    Args:
        plan: of the run.
        units: what of it is to be done here.
        done: what is done.
        executor: who does it.
        progress: whether to show a bar on standard error, if that is a terminal.

    Raises:
        UnitFailed: some failed, after all others were done.
        WorkerLost, Stalled, StoreError: see `complete`.
    """
    missing = done.missing(units)
    _warn_of_spoiled(units, spoiled_units(done.folder, missing))
    todo = units.only(missing)
    with _bar(plan.task, units, todo, shown=progress) as bar:
        made = Fitters(plan, done, Threads.equal(executor.threads), bar.begins if executor.in_process else None)
        complete(todo, executor, made, bar.advance, missing=lambda: done.missing(todo), hopeless=None)


def _warn_of_spoiled(units: WorkPlan, spoiled: Collection[str]) -> None:
    names = [unit.name for unit in units.units if unit.id in spoiled]
    if names:
        more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        warnings.warn(
            f"not as they were written, so done again: {'; '.join(names[:_SHOWN])}{more} (the result, its samples "
            "or its saved probe was changed, or written by an earlier version)",
            DamagedUnit,
            stacklevel=4,
        )


class _Bar:
    """A bar that counts the units that are done, and names those that are in work."""

    def __init__(self, bar: Progress, job: TaskID, title: str, todo: WorkPlan) -> None:
        self._bar, self._job, self._title = bar, job, title
        self._names = [unit.name for unit in todo.units]
        self._is_told = False
        self.advance(0)

    def begins(self, name: str) -> None:
        """Note that a unit is begun in this process."""
        self._is_told = True
        self._bar.update(self._job, description=f"{self._title} · {name}")

    def advance(self, units: int) -> None:
        """Note that so many units more are done; those of other processes are begun in the order of the plan."""
        self._bar.update(self._job, advance=units)
        if self._names and not self._is_told:
            del self._names[:units]
            self._bar.update(self._job, description=f"{self._title} · {next(iter(self._names), 'the last ones')}, …")


@contextmanager
def _bar(title: str, units: WorkPlan, todo: WorkPlan, *, shown: bool) -> Iterator[_Bar]:
    """Within the block, show a bar on standard error, if that is a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=console(err=True), disable=quiet, transient=True) as bar:
        job = bar.add_task(title, total=len(units.units), completed=len(units.units) - len(todo.units))
        yield _Bar(bar, job, title, todo)
