"""Work that leaves a file per unit, and workers that die, fail or hang where a file in their folder says so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from probing import registry
from probing.contracts.executor import Executor, Report, Worker, WorkerSlot, WorkPlan, WorkUnit, unit_id
from probing.errors import NonFiniteStates, UnsupportedModel
from probing.executors._units import Rounds


def plan(count: int) -> WorkPlan:
    """Units 0 … count-1; unit k leaves a file with its square."""
    return WorkPlan(tuple(WorkUnit(unit_id("squares", k), f"unit {k}", 2, k) for k in range(count)))


def executor(name: str, **options: float) -> Executor:
    """An executor of two workers, unless told otherwise."""
    built: Executor = registry.get("executors", name).MEMBER(
        **(options if name == "inline" else {"workers": 2} | options)
    )
    return built


def run(runner: Executor, squares: Squares, count: int = 8, report: Report = lambda size: None) -> None:
    """Complete units 0 … count-1."""
    whole = plan(count)
    complete(Rounds(whole, missing=lambda: squares.missing(whole), busy=set), runner, squares, report)


def complete(rounds: Rounds, runner: Executor, squares: Squares, report: Report = lambda size: None) -> None:
    """Run rounds to their end, as `train` and `extract` do."""
    for todo in rounds:
        with closing(runner.run(todo, squares, report)) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                rounds.note(outcome)


@dataclass(frozen=True)
class Squares:
    """Makes workers on a folder.

    Attributes:
        folder: where units leave their files, and tries are noted.
        kills: of a unit, how many tries end by SIGKILL.
        poison: units that raise. "bug": an error that is none of ours.
        hangs: units that never end.
        broken: `raises`: no worker can be made; `dies`: it dies in the making.
    """

    folder: Path
    kills: tuple[tuple[int, int], ...] = ()
    poison: tuple[int, ...] = ()
    bugs: tuple[int, ...] = ()
    hangs: tuple[int, ...] = ()
    broken: str = ""
    seconds: float = 0.0

    def __call__(self, place: WorkerSlot) -> Worker:
        (self.folder / f"made-{os.getpid()}-{time.monotonic_ns()}").touch()
        if self.broken == "raises":
            raise UnsupportedModel("no such model", found="nothing", where="here")
        if self.broken == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return Squarer(self, place)

    def missing(self, whole: WorkPlan) -> set[str]:
        return {unit.id for unit in whole.units if not (self.folder / f"done-{unit.payload}").exists()}

    def tries(self, k: int) -> int:
        return len(list(self.folder.glob(f"try-{k}-*")))

    def results(self) -> dict[int, str]:
        return {int(file.name[5:]): file.read_text() for file in self.folder.glob("done-*")}


class Squarer(Worker):
    def __init__(self, squares: Squares, place: WorkerSlot) -> None:
        self.squares = squares
        self.place = place

    def start(self, unit: WorkUnit, report: Report) -> Callable[[], None]:
        k, squares = unit.payload, self.squares
        before = squares.tries(k)
        (squares.folder / f"try-{k}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(squares.seconds)
        if before < dict(squares.kills).get(k, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if k in squares.poison:
            raise NonFiniteStates(f"unit {k} is poison", found="NaN", where=f"unit {k}")
        if k in squares.bugs:
            raise ZeroDivisionError("a bug")
        while k in squares.hangs:
            time.sleep(0.05)
        report(unit.size)
        return lambda: self._finish(k)

    def _finish(self, k: int) -> None:
        temporary = self.squares.folder / f".tmp-{k}-{os.getpid()}"
        temporary.write_text(str(k * k))
        temporary.replace(self.squares.folder / f"done-{k}")

    def close(self) -> None:
        (self.squares.folder / f"closed-{os.getpid()}-{time.monotonic_ns()}").touch()
