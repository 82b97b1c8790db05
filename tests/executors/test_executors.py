"""Laws of every executor: what dies is tried again, what fails is set aside, and the disk decides what is done."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from pathlib import Path

import pytest

from probing.contracts.executor import Executor, Outcome, Report, WorkerFactory, WorkerSlot, WorkPlan
from probing.errors import BadParameter, NonFiniteStates, Stalled, UnitFailed, UnsupportedModel, WorkerLost, WorkError
from probing.executors import _units
from probing.executors.processes import Processes
from tests.conftest import ROOT
from tests.samples.work_samples import Squares, complete, executor, plan, run

HAS_RAY = importlib.util.find_spec("ray") is not None
RAY = pytest.param(
    "ray", marks=[] if HAS_RAY else pytest.mark.skip(reason="Ray is not installed: probing-toolkit[ray]")
)
SLOW_RAY = pytest.param("ray", marks=[*RAY.marks, pytest.mark.slow])
SEPARATE = ["processes", RAY]
EVERY = ["inline", *SEPARATE]
ALL = {k: str(k * k) for k in range(8)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, started once for all tests that use it; the executor then leaves it running."""
    if not HAS_RAY:
        yield
        return
    ray, _ = importlib.import_module("probing.executors.ray")._ray(executor("ray"))
    yield
    ray.shutdown()


@pytest.fixture
def squares(tmp_path: Path, request: pytest.FixtureRequest) -> Squares:
    if "ray" in str(getattr(request.node, "callspec", "")):
        request.getfixturevalue("cluster")
    return Squares(tmp_path)


@pytest.mark.parametrize("name", EVERY)
def test_only_what_is_missing_is_run_and_all_of_it_is_reported(name: str, squares: Squares) -> None:
    for k in (0, 5):
        (squares.folder / f"done-{k}").write_text(str(k * k))
    reported: list[int] = []
    run(executor(name), squares, report=reported.append)
    assert squares.results() == ALL
    assert [squares.tries(k) for k in range(8)] == [0, 1, 1, 1, 1, 0, 1, 1]
    assert sum(reported) == 2 * 6
    made = len(list(squares.folder.glob("made-*")))
    closed = len(list(squares.folder.glob("closed-*")))
    # A second worker that was not ready before the first had done it all is ended without asking it.
    assert max(1, made - 1) <= closed <= made <= (1 if name == "inline" else 2)


@pytest.mark.parametrize("name", EVERY)
def test_where_nothing_is_missing_no_worker_is_made(name: str, squares: Squares) -> None:
    for k in ALL:
        (squares.folder / f"done-{k}").write_text(str(k * k))
    run(executor(name), squares)
    assert not list(squares.folder.glob("made-*"))


@pytest.mark.parametrize("name", EVERY)
def test_a_unit_that_raises_is_set_aside_with_its_error_while_the_rest_finish(name: str, squares: Squares) -> None:
    poisoned = Squares(squares.folder, poison=(3,), bugs=(5,))
    with pytest.raises(
        UnitFailed, match=r"2 of the units.*\n.*\n.*unit 3 \(NonFiniteStates: unit 3 is poison\)"
    ) as failure:
        run(executor(name), poisoned)
    assert poisoned.results() == {k: v for k, v in ALL.items() if k not in (3, 5)}
    assert [poisoned.tries(k) for k in range(8)] == [1] * 8
    error = failure.value.errors["unit 3"]
    assert type(error) is NonFiniteStates and (error.found, error.where) == ("NaN", "unit 3")
    bug = failure.value.errors["unit 5"]
    assert "ZeroDivisionError: a bug" in bug.found and "work_samples.py" in bug.__notes__[0]


@pytest.mark.parametrize("name", SEPARATE)
def test_a_worker_killed_in_mid_unit_is_replaced_and_its_unit_done(name: str, squares: Squares) -> None:
    deadly = Squares(squares.folder, kills=((2, 3),))
    run(executor(name), deadly)
    assert deadly.results() == ALL
    assert deadly.tries(2) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", SLOW_RAY])
def test_a_unit_that_kills_every_worker_is_set_aside_after_three_retries(name: str, squares: Squares) -> None:
    deadly = Squares(squares.folder, kills=((2, 99),))
    with pytest.raises(UnitFailed, match=r"unit 2 \(WorkerLost") as failure:
        run(executor(name), deadly)
    assert deadly.results() == {k: v for k, v in ALL.items() if k != 2}
    assert deadly.tries(2) == 4
    assert list(failure.value.errors) == ["unit 2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", SLOW_RAY])
def test_no_progress_for_the_stated_time_is_an_error(name: str, squares: Squares) -> None:
    hanging = Squares(squares.folder, hangs=(0,))
    seconds = 20 if name == "processes" else 30  # the worker has to begin the unit, which takes a busy machine long
    with pytest.raises(Stalled, match=rf"no worker made progress for {seconds} seconds[\s\S]*unit 0"):
        run(executor(name, workers=1, stall_seconds=seconds), hanging)


@pytest.mark.parametrize("name", EVERY)
def test_what_keeps_a_worker_from_being_made_is_raised_as_it_is(name: str, squares: Squares) -> None:
    with pytest.raises(UnsupportedModel, match="no such model") as error:
        run(executor(name), Squares(squares.folder, broken="raises"))
    assert (error.value.found, error.value.where) == ("nothing", "here")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", SLOW_RAY])
def test_workers_that_die_in_the_making_end_the_run(name: str, squares: Squares) -> None:
    with pytest.raises(WorkerLost, match="before they begin"):
        run(executor(name, workers=1), Squares(squares.folder, broken="dies"))
    assert len(list(squares.folder.glob("made-*"))) == 4


def test_three_failures_and_nothing_done_end_the_run(squares: Squares) -> None:
    with pytest.raises(UnitFailed, match="3 of the units"):
        run(executor("inline"), Squares(squares.folder, poison=tuple(range(8))))
    assert sum(squares.tries(k) for k in range(8)) <= 4  # one was begun beside the third


DRIVER = """
import sys
from pathlib import Path
from tests.samples.work_samples import Squares, executor, run
if __name__ == "__main__":
    run(executor(sys.argv[1]), Squares(Path(sys.argv[2]), seconds=float(sys.argv[3])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inline", "processes", SLOW_RAY])
def test_a_killed_and_restarted_driver_completes_and_leaves_no_worker_behind(name: str, tmp_path: Path) -> None:
    file = tmp_path / "driver.py"
    file.write_text(DRIVER)
    folder = tmp_path / "work"
    folder.mkdir()
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, str(file), name, str(folder), "0.3"], env=variables)
    while not list(folder.glob("done-*")):
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait()
    wait_until_dead({int(path.name.split("-")[1]) for path in folder.glob("made-*")} - {child.pid})
    squares = Squares(folder)
    before = set(squares.results())
    assert len(before) < 8
    tries = {k: squares.tries(k) for k in before}
    subprocess.run([sys.executable, str(file), name, str(folder), "0"], env=variables, check=True)
    assert squares.results() == ALL
    assert {k: squares.tries(k) for k in before} == tries


BUSY = """
import os, re, sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from probing.executors.processes import Processes
from probing.contracts.executor import WorkPlan, WorkUnit

class Slow:
    def __reduce__(self):
        return slow, (sys.argv[1], sys.argv[2])

def slow(folder, how):
    (Path(folder) / f"made-{os.getpid()}").touch()
    if how == "computes":  # without ever giving the lock of the interpreter away
        re.match(r"(a+)+$", "a" * 60 + "b")
    __import__("time").sleep(60)

if __name__ == "__main__":
    unit = WorkUnit("1", "one")
    list(Processes(workers=1).run(WorkPlan((unit,)), Slow(), lambda size: None))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread looks after the parent")
@pytest.mark.parametrize("how", ["imports", "computes"])
def test_a_worker_that_is_busy_or_only_starts_ends_with_its_killed_driver(how: str, tmp_path: Path) -> None:
    """Also where no thread of its own could run: the kernel ends it."""
    file = tmp_path / "driver.py"
    file.write_text(BUSY)
    child = subprocess.Popen(
        [sys.executable, str(file), str(tmp_path), how], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    while not list(tmp_path.glob("made-*")):
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait()
    wait_until_dead({int(path.name.split("-")[1]) for path in tmp_path.glob("made-*")}, 5.0)


SIGNALLED = """
import os, sys, time, weakref
from multiprocessing import Pipe, get_context
from multiprocessing.reduction import ForkingPickler
from probing.system import stopping
from probing.executors._units import serve
from probing.system.stopping import EndsWithParent
from probing.contracts.executor import Outcome, WorkerSlot, Worker

class Last:
    pass

def ends_slowly():
    os.write(1, b"ends\\n")
    time.sleep(0.5)

class Destroyed:
    def __del__(self):
        os.write(1, b"works\\n")
        time.sleep(0.5)  # what a signal raises here is dropped

def made(place):
    weakref.finalize(Last, ends_slowly)  # run while the interpreter ends
    if sys.argv[1] == "works":
        for _ in range(3):
            Destroyed()
        time.sleep(60)
    raise ValueError("a worker that is not made ends by itself")

if __name__ == "__main__":
    _, theirs = Pipe()
    arguments = (EndsWithParent(), theirs, bytes(ForkingPickler.dumps(made)), WorkerSlot(0, 1))
    child = get_context("spawn").Process(target=serve, args=arguments)
    child.start()
    print(child.pid, flush=True)
    child.join()
    print("code", child.exitcode)
"""


@pytest.mark.parametrize("when", ["works", "ends"])
def test_signals_end_a_worker_without_a_word_whatever_it_is_doing(when: str, tmp_path: Path) -> None:
    file = tmp_path / "driver.py"
    file.write_text(SIGNALLED)
    child = subprocess.Popen(
        [sys.executable, str(file), when],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    worker = int(child.stdout.readline())
    assert child.stdout.readline().strip() == when
    for _ in range(3):
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.05)
    said, errors = child.communicate(timeout=30)
    assert "code 0" in said, (said, errors)
    assert errors == ""


REAPED = """
import os, subprocess, sys, time
from pathlib import Path
from probing.executors._reaping import reaped
with reaped():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)  # as Ray's agents: nobody's but its own
    Path(sys.argv[1], f"made-{child.pid}").touch()
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", ["killed", "done"])
def test_what_ray_starts_here_does_not_outlive_its_driver(how: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", REAPED, str(tmp_path), how], cwd=ROOT, check=False)
    pids = {int(path.name.split("-")[1]) for path in tmp_path.glob("made-*")}
    assert len(pids) == 1
    wait_until_dead(pids, 5.0)


def wait_until_dead(pids: set[int], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its driver"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Not gone, and not waiting for a parent to take note of its end."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_closing_the_iterator_stops_the_workers(squares: Squares) -> None:
    slow = Squares(squares.folder, seconds=0.2)
    with closing(executor("processes").run(plan(8), slow, lambda size: None)) as outcomes:
        assert next(outcomes).status == "done"
    pids = {int(path.name.split("-")[1]) for path in squares.folder.glob("made-*")}
    assert pids and not any(is_running(pid) for pid in pids)
    assert len(list(squares.folder.glob("closed-*"))) == len(pids)


def do_unit(squares: Squares, k: int) -> None:
    squares(WorkerSlot()).start(plan(8).units[k], lambda size: None)()


@pytest.mark.slow
def test_a_plain_pool_of_processes_loses_what_a_dead_worker_had_and_all_that_waits(squares: Squares) -> None:
    deadly = Squares(squares.folder, kills=((0, 1),))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(do_unit, deadly, k) for k in range(8)]
        assert all(isinstance(future.exception(60), BrokenProcessPool) for future in futures)
    assert deadly.results() == {}
    run(executor("processes"), deadly)
    assert deadly.results() == ALL


class Boasting(Executor):
    """Says that everything is done, and does a part of it."""

    threads = None

    def __init__(self, does: int) -> None:
        self.does = does

    def run(self, plan: WorkPlan, factory: WorkerFactory, report: Report) -> Iterator[Outcome]:
        done = list(executor("inline").run(WorkPlan(plan.units[: self.does]), factory, report))
        yield from done
        yield from (Outcome(unit, "done") for unit in plan.units[self.does :])


def test_an_executor_s_word_counts_for_nothing(squares: Squares) -> None:
    run(Boasting(3), squares)
    assert squares.results() == ALL
    for file in squares.folder.glob("done-*"):
        file.unlink()
    with pytest.raises(UnitFailed, match="is not on the disk") as failure:
        run(Boasting(0), squares)
    assert len(failure.value.errors) == 8 and type(failure.value.errors["unit 0"]) is WorkError


def test_units_done_by_others_meanwhile_are_waited_for(squares: Squares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_units, "POLL_SECONDS", 0.01)
    whole, looks = plan(2), []

    def busy() -> set[str]:
        looks.append(1)
        if len(looks) == 3:
            (squares.folder / "done-1").write_text("1")
        return {whole.units[1].id} if len(looks) < 5 else set()

    missing = lambda: squares.missing(whole)  # noqa: E731
    complete(_units.Rounds(whole, missing=missing, busy=busy), executor("inline"), squares)
    assert squares.results() == {0: "0", 1: "1"} and squares.tries(1) == 0


@pytest.mark.parametrize("options", [{"workers": 0}, {"threads": 0}, {"workers": 2, "stall_seconds": 0}])
@pytest.mark.parametrize("name", ["processes", RAY])
def test_numbers_that_cannot_be_are_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(BadParameter):
        executor(name, **options)


def test_inline_is_one_worker() -> None:
    with pytest.raises(BadParameter, match="processes or ray"):
        executor("inline", workers=2)


def test_work_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="cannot be sent"):
        list(Processes(1).run(plan(1), lambda place: Squares(tmp_path)(place), lambda size: None))


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks")
def test_starting_workers_leaves_the_signals_of_the_driver_as_they_were(squares: Squares) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGTERM)
    run(executor("processes"), squares, 2)
    assert (signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGTERM)) == before
