"""Units of a training run, the workers that do them on an executor, with a fixed number of threads, and their bar."""

from __future__ import annotations

import copyreg
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from probing.contracts.executor import Executor, Report, Worker, WorkerSlot, WorkPlan, WorkUnit
from probing.errors import BadParameter, DamagedUnit, ProbingWarning, ProvenanceMismatch
from probing.results.analysis import AnalysisResult
from probing.results.probe import ProbeResult
from probing.states.store import Store
from probing.system.progress import Steps, fits_bar
from probing.training.fitting import (
    OtherFits,
    OtherStates,
    Unit,
    analysis_id,
    baseline_scores,
    fit_arguments,
    run_analysis,
    score_unit,
    unit_id,
)
from probing.training.plan import Plan
from probing.training.results import NO_SITE
from probing.training.scoring import Scores
from probing.training.states import States, held, site_states, stateless, unit_states
from probing.training.units import load_analysis, load_unit, spoiled_units


@dataclass(frozen=True)
class Threads:
    """Holds the numbers of threads that a process uses.

    Attributes:
        torch: number of PyTorch's threads.
        blas: number of threads of matrix products in NumPy and SciPy; None: unchanged.
    """

    torch: int
    blas: int | None

    @classmethod
    def here(cls) -> Self:
        """Return the numbers of threads of this process; a worker with the same numbers computes the same bits."""
        found = [int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"]
        return cls(torch.get_num_threads(), max(found, default=None))

    @classmethod
    def equal(cls, count: int | None) -> Self:
        """Return `count` threads of each kind; None: the numbers of this process."""
        return cls.here() if count is None else cls(count, count)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Return a context manager within which this process computes with these numbers of threads."""
        before = torch.get_num_threads()
        with threadpool_limits(self.blas, user_api="blas"):
            torch.set_num_threads(self.torch)
            try:
                yield
            finally:
                torch.set_num_threads(before)


@dataclass(frozen=True)
class Fit:
    """Describes a unit of work: fitting a probe at a site or, if `analysis` is not "", running that analysis of it."""

    unit: Unit
    analysis: str = ""

    @property
    def site(self) -> str:
        """Site of the unit."""
        return self.unit[0]

    @property
    def name(self) -> str:
        """Name of the unit, for messages and the bar."""
        site, probe, _ = self.unit
        what = f"{self.analysis} of {probe}" if self.analysis else probe
        return what if site == NO_SITE else f"{what} at {site}"


def training_units(plan: Plan) -> WorkPlan:
    """Return all units of a run, with those of one site together, so that a process reads each site once."""
    fits = [WorkUnit(unit_id(plan, *unit), Fit(unit).name, 1, Fit(unit)) for unit in plan.units()]
    for name, unit in plan.analysis_units():
        task = Fit(unit, name)
        fits.append(WorkUnit(analysis_id(plan, plan.analyses[name], unit), task.name, 1, task))
    order = {site: position for position, site in enumerate((NO_SITE, *plan.sites))}
    return WorkPlan(tuple(sorted(fits, key=lambda unit: order[unit.payload.site])))


@dataclass
class UnitResults:
    """Gives results by the id of their unit, from the disk or, for a run without a folder, from memory."""

    folder: Path | None
    _kept: dict[str, ProbeResult | AnalysisResult] = field(default_factory=dict)

    def result(self, unit: WorkUnit) -> ProbeResult | AnalysisResult | None:
        """Return the result of a unit, or None if it is not done."""
        if unit.id not in self._kept:
            load: Callable[..., Any] = load_analysis if unit.payload.analysis else load_unit
            found = load(self.folder, unit.id)
            if found is None:
                return None
            self._kept[unit.id] = found
        return self._kept[unit.id]

    def keep(self, unit: WorkUnit, result: ProbeResult | AnalysisResult) -> None:
        """Store a result in memory, for a run without a folder."""
        if self.folder is None:
            self._kept[unit.id] = result

    def missing(self, plan: WorkPlan) -> set[str]:
        """Return the ids of the units that are not done."""
        return {unit.id for unit in plan.units if self.result(unit) is None}


@dataclass(frozen=True)
class Fitters:
    """Makes the workers that fit probes, in any process; the plan is sent there, and the stores are opened again.

    Attributes:
        plan: plan of the run, which lists its units: fits and analyses.
        done: results of the units done so far; only its folder, if workers are other processes.
        threads: numbers of threads of every worker.
        told: for an inline run, a function that is called with the name of each unit when it starts.
    """

    plan: Plan
    done: UnitResults
    threads: Threads
    told: Callable[[str], None] | None = None

    def __call__(self, place: WorkerSlot) -> Fitter:
        """Make the worker."""
        return Fitter(self)


class Fitter(Worker):
    """Fits probes and runs analyses; it reads the states of a site only once for consecutive units of that site."""

    def __init__(self, made: Fitters) -> None:
        self._plan = made.plan
        self._done = made.done
        self._told = made.told
        self._others = OtherStates(made.plan)
        self._here: tuple[str, States] = (NO_SITE, {})
        self._given: tuple[str, States] = (NO_SITE, {})
        self._stack = ExitStack()
        self._stack.enter_context(made.threads.used())

    def start(self, unit: WorkUnit, report: Report) -> Callable[[], None]:
        """Do the whole unit, unless it is done already, and return a function that does nothing."""
        task: Fit = unit.payload
        if self._told is not None:
            self._told(task.name)
        if self._done.result(unit) is None:
            plan, folder, (site, _, probe) = self._plan, self._done.folder, task.unit
            result: ProbeResult | AnalysisResult
            if task.analysis:
                given = self._given_states(plan.analyses[task.analysis].given)
                here = held(self._states(site))
                result = run_analysis(plan, task.analysis, task.unit, here, given and held(given), folder)
            else:
                states, baselines, others = self._inputs(task.unit)
                fits = probe.fit_many(**fit_arguments(plan, probe, states, plan.label_sets))
                result = score_unit(plan, task.unit, fits, states, baselines, others, folder)
            self._done.keep(unit, result)
        report(unit.size)
        return lambda: None

    def close(self) -> None:
        """Restore the numbers of threads that the process had before."""
        self._stack.close()

    def _inputs(self, unit: Unit) -> tuple[States, Mapping[str, Scores], Sequence[OtherFits]]:
        """Return the input of a probe, the scores of the baselines, and the probe's fits on the states of state
        controls; only the input at site "(none)".
        """
        site, _, probe = unit
        if site == NO_SITE:
            return stateless(self._plan, probe), {}, ()
        states = unit_states(self._plan, site, probe, self._states(site))
        return states, self._baselines, self._others.fits(unit)

    def _states(self, site: str) -> States:
        if self._here[0] != site:
            self._here = (NO_SITE, {})  # so that two are never held, but for the one that an analysis is given
            self._here = (site, site_states(self._plan, site))
        return self._here[1]

    def _given_states(self, site: str) -> States | None:
        if not site or site == self._here[0]:
            return self._here[1] if site else None
        if self._given[0] != site:
            self._given = (site, site_states(self._plan, site))
        return self._given[1]

    @cached_property
    def _baselines(self) -> Mapping[str, Scores]:
        return baseline_scores(self._plan)


def reopened(path: str, content_id: str) -> Store:
    """Open a store by its path in another process, and return it.

    Raises:
        ProvenanceMismatch: the store now holds other states than `content_id` says.
    """
    store = Store.open(path)
    if store.content_id != content_id:
        raise ProvenanceMismatch(
            "the store changed while it was trained on",
            needed=f"content {content_id[:12]}…",
            found=f"content {store.content_id[:12]}…",
            where=path,
            next_step="run the same command again",
        )
    return store


def _sent(store: Store) -> tuple[Callable[..., Store], tuple[str, str]]:
    return reopened, (str(Path(store.path).resolve()), store.content_id)


copyreg.pickle(Store, _sent)  # a store goes to another process as its path


def results_of(units: Sequence[WorkUnit], done: UnitResults) -> tuple[list[ProbeResult], list[AnalysisResult]]:
    """Return the results of those units that are done: first those of fits, then those of analyses."""
    found = [result for unit in units if (result := done.result(unit)) is not None]
    return (
        [result for result in found if isinstance(result, ProbeResult)],
        [result for result in found if isinstance(result, AnalysisResult)],
    )


_SHOWN = 5


def check_run(executor: Executor, folder: Path | None, array_size: int, array_index: int) -> None:
    """Check that several processes have a folder to share, and that `array_index` is in range.

    Raises:
        BadParameter: `array_index` is out of range, or there are several processes without a folder.
    """
    if not 0 <= array_index < array_size:
        raise BadParameter("no such part of the array", needed=f"0 to {array_size - 1}", found=str(array_index))
    if folder is None and (array_size > 1 or not executor.in_process):
        raise BadParameter(
            "several processes need a folder in which their results meet",
            needed="to=DIR",
            found="no folder",
            next_step="name a folder that all of them see, or use executor='inline'",
        )


def units_to_do(plan: Plan, units: WorkPlan, done: UnitResults) -> WorkPlan:
    """Return those of the units that are not done yet; warn of units that were changed since, and of rows left out, and
    raise an error if an analysis that is not done cannot be run on these states.
    """
    missing = done.missing(units)
    _warn_of_spoiled(units, spoiled_units(done.folder, missing))
    _warn_of_splits(plan.labels.excluded)
    todo = units.only(missing)
    for name in dict.fromkeys(unit.payload.analysis for unit in todo.units if unit.payload.analysis):
        plan.analyses[name].check_states(plan.store, plan.labels)
    return todo


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


def _warn_of_splits(excluded: Mapping[str, int]) -> None:
    """Warn of labelled rows whose split is none of train, dev and test: no probe sees them."""
    left = [f"{n:,} of the {name}" for name, n in excluded.items() if name.startswith("split ")]
    if left:
        warnings.warn(
            f"rows left out, since splits are train, dev and test: {'; '.join(left)}", ProbingWarning, stacklevel=4
        )


class _Bar:
    """Counts the units that are done, and names those that are in work."""

    def __init__(self, steps: Steps, title: str, todo: WorkPlan) -> None:
        self._steps, self._title = steps, title
        self._names = [unit.name for unit in todo.units]
        self._is_told = False
        self.advance(0)

    def begins(self, name: str) -> None:
        """Note that a unit is begun in this process."""
        self._is_told = True
        self._steps.update(self._steps.done, self._steps.total, f"{self._title} · {name}")

    def advance(self, units: int) -> None:
        """Note that so many units more are done; those of other processes are begun in the order of the plan."""
        self._steps.advance(units)
        if self._names and not self._is_told:
            del self._names[:units]
            title = f"{self._title} · {next(iter(self._names), 'the last ones')}, …"
            self._steps.update(self._steps.done, self._steps.total, title)


@contextmanager
def units_bar(title: str, units: WorkPlan, todo: WorkPlan, *, shown: bool) -> Iterator[_Bar]:
    """Within the block, show on standard error what is done: a bar in a terminal, else a line every 30 s."""
    total = len(units.units)
    with fits_bar(title, total, total - len(todo.units), shown) as steps:
        yield _Bar(steps, title, todo)
