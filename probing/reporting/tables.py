"""Prints tables of sites and probes in the terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from probing.reporting.findings import finding
from probing.reporting.panels import mean
from probing.reporting.task_results import NO_SITE, TaskResults, by_task, comparison, least_gain, not_saved, score
from probing.reporting.warnings import column, example_of, title, warnings_of_task
from probing.reporting.wording import (
    CEILING,
    correction_title,
    count,
    decimal,
    folded,
    measure_title,
    p_value,
    plural,
    quantity_title,
    resampled_by,
    short,
    with_interval,
)
from probing.results.analysis import AnalysisResult
from probing.results.analysis import Point as Number
from probing.results.probe import ProbeResult, Score
from probing.system.screen import shown

_WIDE = 120
_SHORT = {"log_loss": "bits", "distance_spearman": "Spearman"}
_ENOUGH_DRAWS = 3
_FEW_DRAWS = "two draws of a control hardly show how draws vary, so intervals are wide: five are usual"


def print_results(results: Sequence[ProbeResult], console: Console, analyses: Sequence[AnalysisResult] = ()) -> None:
    """Print, for each task, tables of scores, further controls and analyses, warnings, and the finding in sentences."""
    for task in by_task(results, analyses):
        console.print(_heading(task, console.width))
        table, left_out = _fitting(task, console)
        console.print(table)
        if left_out:
            said = f"left out for want of room: {', '.join(left_out)} (a wider terminal, or --json, has them)"
            console.print(shown(said, style="dim"))
        for control in (*task.controls()[1:], *task.chance_checks(), *task.state_controls()):
            console.print(shown(_control_words(task, control)[0], style="italic"))
            console.print(_control_table(task, control, console.width))
        console.print(_notes(task, console.width))
        for (analysis, probe), found_here in task.analyses_by_kind().items():
            console.print(shown(f"analysis {analysis} of {probe}", style="italic"))
            console.print(_analysis_table(summary_rows(found_here)))
        console.print(_passed_over(task), end="")
        for warning in warnings_of_task(task):
            console.print(shown(f"warning: {warning}", style="bold yellow"))
        found = finding(task)
        console.print(shown(found.sentence, style="bold"))
        console.print(shown(found.does_not_show))
        console.print()


def print_pairs(pairs: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the result of `compare`: a row for each pair, and the number of tests for which p is adjusted."""
    first = pairs[0]
    told = {part: len({row[f"{part}_{x}"] for row in pairs for x in "ab"}) > 1 for part in ("model", "probe")}
    parts = [*(["model"] if told["model"] else []), "site", *(["probe"] if told["probe"] else [])]
    rows, measure = count(first["n"]), measure_title(first["measure"])
    console.print(shown(f"{measure} on {first['split']}, a minus b, {rows} rows", style="bold"))
    table = grid(["site a", "site b", "difference", "adjusted p", "detectable"])
    for row in pairs:
        names = [" ".join([row[f"{part}_{x}"] for part in parts]) for x in "ab"]
        found = Score(row["difference"], row["low"], row["high"], row["n"], "")
        cells = [_shown(found, console.width), p_value(row["p_adjusted"]), decimal(row["detectable"])]
        table.add_row(*map(shown, (*names, *cells)))
    console.print(table)
    how = f"p {correction_title(first['correction'])}-adjusted over {plural(len(pairs), 'pair')}"
    note = "detectable: the smallest true difference that would have been shown with 80 % probability"
    console.print(shown(f"95 % intervals, not adjusted; {how}; {note}; choose a site on dev, not here", style="dim"))


def _heading(task: TaskResults, width: int) -> Text:
    of, by = task.any, f" by {task.probes[0]}" if _is_told_above(task, width) else ""
    sizes = f"{plural(of.seed_count, 'seed')}, {plural(of.draw_count, 'draw')} of each control"
    said = f"{task.task}: {measure_title(task.primary)} on test{by}, {sizes}; states of {task.states}"
    return shown(said, style="bold")


def _is_told_above(task: TaskResults, width: int) -> bool:
    """Return whether the options of the probe stand in the heading, for want of room in the rows."""
    return width < _WIDE and len(task.probes) == 1 and ":" in task.probes[0]


def _fitting(task: TaskResults, console: Console) -> tuple[Table, list[str]]:
    """Return the table of a task with the columns for which there is room, and the names of the others."""
    left_out: list[str] = []
    table = _table(task, console.width, left_out)
    for name in ("ceiling", _second(task), "control", "probe", "selectivity"):
        if Measurement.get(console, console.options.update(max_width=10**6), table).maximum <= console.width:
            break
        if any(column.header.plain == name for column in table.columns if isinstance(column.header, Text)):
            left_out.append(name)
            table = _table(task, console.width, left_out)
    return table, left_out


def _second(task: TaskResults) -> str:
    second = task.secondary
    return _SHORT.get(second, measure_title(second)) if second else ""


def _table(task: TaskResults, width: int, left_out: Sequence[str] = ()) -> Table:
    control = next(iter(task.controls()), None)
    second = task.secondary
    columns = ["site", "probe", measure_title(task.primary)]
    columns += ["control", "selectivity"] if control else []
    columns += ["ceiling"] if task.has_ceiling(control) else []
    columns += [_second(task)] if second else []
    columns += ["gain"] if any(least_gain(score(r, task.primary)) for r in task.all) else []
    columns = [name for name in columns if name not in left_out]
    table = grid(columns)
    best = task.best()
    for result in task.results:
        row = _row(task, result, columns, control, width)
        table.add_row(*_marked(row, result is best), end_section=result is task.results[-1])
    for result in task.baselines:
        table.add_row(*map(shown, _row(task, result, columns, control, width)))
    return table


def grid(columns: Sequence[str], texts: Sequence[int] | None = None) -> Table:
    """Return an empty table with these headings; `texts` are the indices of the columns that hold words (None: the
    columns of sites and probes).
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", collapse_padding=True)
    for i, name in enumerate(columns):
        text = name in ("site", "probe", "site a", "site b") if texts is None else i in texts
        table.add_column(
            shown(name),
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=not text,
            min_width=6 if text else 4,
        )
    return table


def _marked(row: list[str], best: bool) -> list[Text]:
    site = row[0] + "*" if best else row[0]
    return [shown(cell, style="bold" if best else "") for cell in (site, *row[1:])]


def _row(task: TaskResults, result: ProbeResult, columns: list[str], control: str | None, width: int) -> list[str]:
    measured = score(result, task.primary)
    against = comparison(measured, control)
    second = score(result, task.secondary) if task.secondary else None
    gain = least_gain(measured)
    cells = {
        "site": "baseline" if result.site == NO_SITE else result.site,
        "probe": result.probe.partition(":")[0] if _is_told_above(task, width) else result.probe,
        "control": short(against.score.value) if against else "",
        "selectivity": _shown(against.selectivity, width) if against else "",
        "ceiling": short(against.ceiling) if against and against.ceiling is not None else "",
        "gain": _shown(gain.gain, width) if gain else "",
    }
    own = {measure_title(task.primary): _shown(measured.score, width) if measured else ""}
    return [(cells | own).get(name, short(second.score.value) if second else "") for name in columns]


def _shown(found: Score, width: int) -> str:
    return with_interval(found) if width >= _WIDE else folded(found)


def _control_table(task: TaskResults, control: str, width: int) -> Table:
    _, second, name = _control_words(task, control)
    table = grid(["site", "probe", second, name, *(["ceiling"] if task.has_ceiling(control) else [])])
    for result in task.results:
        against = comparison(score(result, task.primary), control)
        if against is not None:
            numbers = [_shown(against.score, width), _shown(against.selectivity, width), short(against.ceiling)]
            table.add_row(*map(shown, (result.site, result.probe, *numbers)[: len(table.columns)]))
    return table


def _passed_over(task: TaskResults) -> Text:
    """Return which probes an analysis does not fit."""
    run = set(task.analyses_by_kind())
    left = {name: [probe for probe in task.probes if (name, probe) not in run] for name, _ in sorted(run)}
    lines = [
        f"{name} does not fit, and was not run on: {', '.join(probes)}\n" for name, probes in left.items() if probes
    ]
    return shown("".join(lines), style="dim")


def _analysis_table(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("site", "quantity", "value", "unit", "controls"):
        table.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(shown, row))
    return table


def _control_words(task: TaskResults, control: str) -> tuple[str, str, str]:
    """Return the title of a control's table and the headings of its score and difference columns."""
    other = example_of(task, control) if control in task.state_controls() else None
    if other is not None:
        return title(other), "on them", column(other)
    if control in task.chance_checks():
        return f"chance check: {control}", "control", "above chance"
    return f"control: {control}", "control", "selectivity"


def _notes(task: TaskResults, width: int) -> Text:
    notes = [f"* best on {task.chosen_on}"] if len(task.results) > 1 and task.best() else []
    notes += [] if width >= _WIDE else ["± half the 95 % interval"]
    notes += [f"control: {task.controls()[0]}"] if task.controls() else []
    if task.has_ceiling(next(iter(task.controls()), None)):
        notes += [CEILING]
    notes += ["gain: over the best baseline"] if any(least_gain(score(r, task.primary)) for r in task.all) else []
    notes += [resampled_by(task.any.facts)] if resampled_by(task.any.facts) else []
    notes += [_FEW_DRAWS] if 1 < task.any.draw_count < _ENOUGH_DRAWS else []
    notes += not_saved(task.results)
    notes += ["some fits did not converge"] if any(not r.converged for r in task.all) else []
    return shown("; ".join(notes), style="dim")


def summary_rows(results: Sequence[AnalysisResult]) -> list[list[str]]:
    """Return rows of site, quantity (with the value of the varied parameter), value with interval, unit, and the mean
    of each control.
    """
    return [
        _summary(result, quantity, x_name, x)
        for result in results
        for quantity, x_name, x in dict.fromkeys((p.quantity, p.x_name, p.x) for p in result.points)
    ]


def _summary(result: AnalysisResult, quantity: str, x_name: str, x: float | None) -> list[str]:
    here = [p for p in result.points if (p.quantity, p.x) == (quantity, x)]
    own = mean([p for p in here if not p.control])
    means = {name: mean([p for p in here if p.control == name]) for name in dict.fromkeys(p.control for p in here)}
    beside = ", ".join(f"{name} {_value(found)}" for name, found in means.items() if name)
    if own is None and len(means) == 1:  # a difference from one control: itself the value
        own, beside = next(iter(means.values())), f"against {next(iter(means))}"
    title = quantity_title(quantity) + ("" if x is None else f", {x_name} {x:g}")
    return [result.site, title, f"{_value(own)}{_within(own)}", next(p.unit for p in here), beside]


def _value(point: Number | None) -> str:
    if point is None:
        return decimal(None)
    return count(round(point.value)) if abs(point.value) >= 1e4 else decimal(point.value)


def _within(point: Number | None) -> str:
    if point is None or point.low is None or point.high is None:
        return ""
    return f" [{_value(Number('', point.low, ''))}, {_value(Number('', point.high, ''))}]"
