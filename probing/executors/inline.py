"""Runs one unit of work after another in this process: the default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from probing.contracts.executor import Executor, Outcome, Report, WorkerFactory, WorkerSlot, WorkPlan
from probing.errors import BadParameter
from probing.executors._units import Attempt, check_options


class Inline(Executor):
    """Runs units of work (shards, fits) one after another in the process of the caller, without start-up time or a
    second copy of the model.

    Args:
        workers: must be 1.
        threads: number of processor threads; None leaves it unchanged.
    """

    in_process = True

    def __init__(self, workers: int = 1, threads: int | None = None) -> None:
        check_options(workers, threads, 1.0)
        if workers != 1:
            raise BadParameter(
                "the executor inline is one worker",
                needed="workers 1",
                found=str(workers),
                next_step="use the executor processes or ray",
            )
        self.workers = workers
        self.threads = threads

    def run(self, plan: WorkPlan, factory: WorkerFactory, report: Report) -> Iterator[Outcome]:
        """Run every unit and yield its outcome; while the result of a unit is written, the next unit is computed.
        Arguments are those of `Executor.run`.
        """
        if not plan.units:
            return
        before: Attempt | None = None
        with closing(factory(WorkerSlot(None, self.threads))) as worker:
            for unit in plan.units:
                with Attempt(unit) as attempt:
                    attempt.finish = worker.start(unit, report)
                if before is not None:
                    yield before.outcome()
                before = attempt
            if before is not None:
                yield before.outcome()


MEMBER = Inline
