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
from probing.reporting.task_results import TaskResults, by_task, not_saved, place_of, score
from probing.reporting.terminal import WIDE, grid, print_lines, print_table
from probing.reporting.warnings import column, example_of, title, warnings_of_task
from probing.reporting.wording import (
    CEILING,
    Estimate,
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
            print_lines(console, [said], style="dim")
        for control in (*task.controls()[1:], *task.chance_checks(), *task.state_controls()):
            _print_control(task, control, console)
        console.print(_notes(task, console.width))
        for (analysis, probe), found_here in task.analyses_by_kind().items():
            print_lines(console, [f"analysis {analysis} of {probe}"], style="italic")
            console.print(_analysis_table(summary_rows(found_here)))
        console.print(_passed_over(task), end="")
        print_lines(console, [f"warning: {warning}" for warning in warnings_of_task(task)], style="bold yellow")
        found = finding(task)
        print_lines(console, [found.sentence], style="bold")
        print_lines(console, [found.does_not_show, ""])


def print_pairs(pairs: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the result of `compare`: a row for each pair, and the number of tests for which p is adjusted."""
    first = pairs[0]
    told = {part: len({row[f"{part}_{x}"] for row in pairs for x in "ab"}) > 1 for part in ("model", "probe")}
    parts = [*(["model"] if told["model"] else []), "site", *(["probe"] if told["probe"] else [])]
    rows = []
    for row in pairs:
        names = [" ".join([row[f"{part}_{x}"] for part in parts]) for x in "ab"]
        found = Score(row["difference"], row["low"], row["high"], row["n"], "")
        rows.append([*names, _shown(found, console.width), p_value(row["p_adjusted"]), decimal(row["detectable"])])
    head = ["site a", "site b", "difference", "adjusted p", "detectable"]
    about = f"{measure_title(first['measure'])} on {first['split']}, a minus b, {count(first['n'])} rows"
    how = f"p {correction_title(first['correction'])}-adjusted over {plural(len(pairs), 'pair')}"
    note = "detectable: the smallest true difference that would have been shown with 80 % probability"
    note = f"95 % intervals, not adjusted; {how}; {note}; choose a site on dev, not here"
    print_table(console, head, rows, title=about, note=note)


def _heading(task: TaskResults, width: int) -> Text:
    of, by = task.any, f" by {task.probes[0]}" if _is_told_above(task, width) else ""
    sizes = f"{plural(of.seed_count, 'seed')}, {plural(of.draw_count, 'draw')} of each control"
    said = f"{task.task}: {measure_title(task.primary)} on test{by}, {sizes}; states of {task.states}"
    return shown(said, style="bold")


def _is_told_above(task: TaskResults, width: int) -> bool:
    """Return whether the options of the probe stand in the heading, for want of room in the rows."""
    return width < WIDE and len(task.probes) == 1 and ":" in task.probes[0]


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
    known = task.columns()
    of_control = [name for name in ("control", "selectivity", "ceiling") if name in known]
    columns = ["site", "probe", measure_title(task.primary), *of_control]
    columns += [_second(task)] if task.secondary else []
    columns = [name for name in [*columns, *(["gain"] if "gain" in known else [])] if name not in left_out]
    table = grid(columns)
    best = task.best()
    for result in task.all:
        row = _row(task, result, columns, width)
        is_last = bool(task.results) and result is task.results[-1]
        table.add_row(*_marked(row, result is best), end_section=is_last)
    return table


def _marked(row: list[str], best: bool) -> list[Text]:
    site = row[0] + "*" if best else row[0]
    return [shown(cell, style="bold" if best else "") for cell in (site, *row[1:])]


def _row(task: TaskResults, result: ProbeResult, columns: list[str], width: int) -> list[str]:
    scores = task.on_test(result)
    second = score(result, task.secondary) if task.secondary else None
    cells = {
        "site": place_of(result),
        "probe": result.probe.partition(":")[0] if _is_told_above(task, width) else result.probe,
        _second(task): short(second.score.value) if second else "",
        "control": short(scores.control.value) if scores.control else "",
        "selectivity": _shown(scores.selectivity, width),
        "ceiling": short(scores.ceiling) if scores.ceiling is not None else "",
        "gain": _shown(scores.gain, width),
        measure_title(task.primary): _shown(scores.score, width),
    }
    return [cells[name] for name in columns]


def _shown(found: Estimate | None, width: int) -> str:
    return "" if found is None else with_interval(found) if width >= WIDE else folded(found)


def _print_control(task: TaskResults, control: str, console: Console) -> None:
    said, second, name = _control_words(task, control)
    has_ceiling = "ceiling" in task.columns(control)
    rows = []
    for result in task.results:
        scores = task.on_test(result, control)
        if scores.control is not None:
            numbers = [_shown(scores.control, console.width), _shown(scores.selectivity, console.width)]
            rows.append([result.site, result.probe, *numbers, *([short(scores.ceiling)] if has_ceiling else [])])
    print_lines(console, [said], style="italic")
    print_table(console, ["site", "probe", second, name, *(["ceiling"] if has_ceiling else [])], rows)


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
    notes += [] if width >= WIDE else ["± half the 95 % interval"]
    notes += [f"control: {task.controls()[0]}"] if task.controls() else []
    notes += [CEILING] if "ceiling" in task.columns() else []
    notes += ["gain: over the best baseline"] if "gain" in task.columns() else []
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
