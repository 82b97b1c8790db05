"""The table at the head of a page that sets the runs of one task side by side: models, or settings of one model."""

from __future__ import annotations

from collections.abc import Sequence

from probing.reporting.findings import Finding
from probing.reporting.markup import Markup, el, join, table
from probing.reporting.sections import scored
from probing.reporting.task_results import TaskResults, comparison, least_gain, score
from probing.reporting.wording import measure_title

_HEAD = ("states", "site", "probe", "score", "control", "selectivity", "gain over baseline", "finding")


def side_by_side(tasks: Sequence[TaskResults], findings: Sequence[Finding]) -> Markup:
    """Return a table for each task that was run several times, a row a run, at the site that is best on dev."""
    both = list(zip(tasks, findings, strict=True))
    names = [task.task for task in tasks]
    several = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    tables = [_table(name, [one for one in both if one[0].task == name]) for name in several]
    return el("section", None, *tables) if tables else join([])


def _table(name: str, runs: Sequence[tuple[TaskResults, Finding]]) -> Markup:
    measures = ", ".join(dict.fromkeys(measure_title(task.primary) for task, _ in runs))
    caption = (
        f"{name} side by side: {measures} on test, with 95 % intervals, at the site and probe of each run that is best "
        "on dev. Runs are not compared by a test here: `probing compare` does, on the same rows."
    )
    return table(caption, _HEAD, [_row(task, found) for task, found in runs])


def _row(task: TaskResults, found: Finding) -> list[str | Markup]:
    best = task.best()
    measured = score(best, task.primary) if best else None
    against = comparison(measured, next(iter(task.controls()), None))
    gain = least_gain(measured)
    scores = [
        measured.score if measured else None,
        against.score if against else None,
        against.selectivity if against else None,
        gain.gain if gain else None,
    ]
    where = [best.site, best.probe] if best else ["–", "–"]
    return [task.states, *where, *map(scored, scores), found.status]
