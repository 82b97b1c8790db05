"""Controls of states in tables and sentences: what the states of a site add to other states. Never called
selectivity.
"""

from __future__ import annotations

from probing.reporting.task_results import TaskResults, comparison, score
from probing.reporting.wording import measure_title, with_interval
from probing.results.probe import Comparison, MeasureResult

_WHAT = {
    "random states": "one random vector for each key of the rows, so that it shows what telling keys apart is worth",
    "the untrained twin": "the states of the same architecture with random weights",
}


def column(against: Comparison) -> str:
    """Return the title of the difference: `above random states`."""
    return f"above {against.above}"


def example_of(task: TaskResults, control: str) -> Comparison | None:
    """Return any comparison with the control, for what all of them share."""
    found = (comparison(score(result, task.primary), control) for result in task.results)
    return next((against for against in found if against is not None), None)


def title(against: Comparison) -> str:
    """Return the title of the table: the same labels on other states."""
    return f"the same labels on other states: {against.control}"


def described(against: Comparison) -> str:
    """Return the title with a description of those states."""
    what = _WHAT.get(against.above, f"the states of {against.above}")
    return f"{title(against)} ({what}). The difference is no selectivity."


def sentences(measured: MeasureResult) -> list[str]:
    """Return, for each control of states, what the task scores on those states and above them."""
    name = measure_title(measured.measure)
    return [
        f"On {_source(against)} the same probe scores {with_interval(against.score)}: "
        f"{name} here is {with_interval(against.selectivity)} above {against.above}{_verdict(against)}."
        for against in measured.comparisons
        if against.above
    ]


def _source(against: Comparison) -> str:
    return "random states" if against.above == "random states" else f"the states of {against.above}"


def _verdict(against: Comparison) -> str:
    gap = against.selectivity
    if gap.low > 0:
        return ""
    return ", which is less than they give" if gap.high < 0 else ", which is not told from 0"
