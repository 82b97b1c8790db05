"""Completing a plan: an executor runs the missing units until all are on the disk, or the failed ones are known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import closing, contextmanager

from probing.contracts.executor import Executor, Outcome, Report, WorkerFactory, WorkPlan, WorkUnit
from probing.errors import (
    BadParameter,
    CorruptShard,
    MissingDependency,
    NonFiniteStates,
    NotRepresentable,
    ProbingError,
    StoreBusy,
    StoreError,
    UnitFailed,
    WorkError,
)
from probing.recipes import build

HOPELESS = 3  # so many failures and nothing done: the rest would fail too
ROUNDS = 3
POLL_SECONDS = 1.0


def executor_of(executor: str | Executor, workers: int | None, threads: int | None) -> Executor:
    """Return the executor, with the options given beside its name.

    Raises:
        UnknownName, BadParameter: no such executor, or an option out of range.
        MissingDependency: it needs a package that is not installed.
    """
    given = [f"{name}={n}" for name, n in {"workers": workers, "threads": threads}.items() if n is not None]
    if not isinstance(executor, str):
        if given:
            raise BadParameter("the executor has its own options", needed="workers and threads in the executor object")
        return executor
    name, _, own = executor.partition(":")
    built: Executor = build("executors", f"{name}:{','.join(filter(None, [own, *given]))}")
    return built


def complete(
    plan: WorkPlan,
    executor: Executor,
    factory: WorkerFactory,
    report: Report,
    *,
    missing: Callable[[], Set[str]],
    busy: Callable[[], Set[str]] = frozenset,
    hopeless: int | None = HOPELESS,
) -> None:
    """Run units until none is missing. A unit that fails is set aside while the rest is done.

    Args:
        plan: all units.
        executor: who runs them.
        factory: makes workers.
        report: called with how much was done.
        missing: ids of the units that are not on the disk; asked again after every round.
        busy: ids of the units that others are doing; when only such are left, this waits for them.
        hopeless: after so many failures with nothing done the rest is not tried; None: all is tried.

    Raises:
        UnitFailed: some units failed; at once if the first `hopeless` did and none was done.
        StoreError: the disk is full or cannot be written.
        Stalled, WorkerLost, MissingDependency: see `Executor.run`.
    """
    state = _Progress(hopeless)
    while left := missing() - set(state.errors):
        todo = plan.only(left - busy())
        if not todo.units:
            time.sleep(POLL_SECONDS)
            continue
        with closing(executor.run(todo, factory, report)) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                state.note(outcome)
        state.doubt(missing(), todo)
    if state.errors:
        raise state.failure()


@contextmanager
def sole_error_itself() -> Iterator[None]:
    """Within the block, the error of a single failed unit is raised as it is."""
    try:
        yield
    except UnitFailed as failure:
        if len(failure.errors) != 1:
            raise
        ((name, error),) = failure.errors.items()
        error.add_note(f"everything but {name} is done and kept")
        raise error from error.__cause__


class _Progress:
    """State of a run, from the outcomes so far."""

    def __init__(self, hopeless: int | None) -> None:
        self._hopeless = hopeless
        self.errors: dict[str, ProbingError] = {}
        self._names: dict[str, str] = {}
        self._is_any_done = False
        self._busy: set[str] = set()
        self._rounds: Counter[str] = Counter()

    def note(self, outcome: Outcome) -> None:
        """Record one outcome.

        Raises:
            ProbingError: it means that no other unit can be done either.
        """
        unit, error = outcome.unit, outcome.error
        if isinstance(error, StoreBusy):
            self._busy.add(unit.id)
        elif error is not None:
            if _ends_all(error):
                raise error
            self._set_aside(unit, error)
        self._is_any_done = self._is_any_done or outcome.status == "done"
        if self._hopeless is not None and len(self.errors) >= self._hopeless and not self._is_any_done:
            raise self.failure()

    def doubt(self, missing: Set[str], todo: WorkPlan) -> None:
        """Set aside, after a round, the units that were run three times, never failed, and are not on the disk."""
        self._rounds.update(unit.id for unit in todo.units if unit.id not in self._busy)
        self._busy.clear()
        for unit in todo.units:
            if unit.id in missing and unit.id not in self.errors and self._rounds[unit.id] >= ROUNDS:
                error = WorkError(f"{unit.name} was run {ROUNDS} times, and is not on the disk", where=unit.name)
                self._set_aside(unit, error)

    def failure(self) -> UnitFailed:
        """Return the error that lists the units that were set aside."""
        listed = [f"{self._names[i]} ({type(error).__name__}: {error.message})" for i, error in self.errors.items()]
        more = f", and {len(listed) - 5} more" if len(listed) > 5 else ""
        failure = UnitFailed(
            f"{len(listed)} of the units of work failed",
            needed="every unit",
            found="; ".join(listed[:5]) + more,
            next_step="mend what they name and run the same command again: what is done is kept",
        )
        failure.errors = {self._names[i]: error for i, error in self.errors.items()}
        failure.__cause__ = next(iter(self.errors.values()))
        return failure

    def _set_aside(self, unit: WorkUnit, error: ProbingError) -> None:
        self.errors[unit.id] = error
        self._names[unit.id] = unit.name


def _ends_all(error: ProbingError) -> bool:
    """Return whether the error is of the machine or the store, and not of one unit."""
    of_the_unit = isinstance(error, NonFiniteStates | NotRepresentable | CorruptShard)
    return isinstance(error, StoreError | MissingDependency) and not of_the_unit
