"""Analyses on the page: curves over sites, curves over the varied parameter, and every number in a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from probing.reporting.chart import figure
from probing.reporting.curves import Curve, Panel, Point, Role
from probing.reporting.markup import Markup, el, join, table
from probing.reporting.task_results import TaskResults
from probing.reporting.wording import count, decimal, plural, quantity_title
from probing.results.analysis import AnalysisResult
from probing.results.analysis import Point as Number

_AXES = {"rows": "training rows seen", "k": "coordinates", "coordinates": "coordinates"}


def analyses_section(task: TaskResults) -> Markup:
    """Return, for each analysis and probe, its figures and, folded away, its numbers."""
    return join(_group(task, *key, results) for key, results in task.analyses_by_kind().items())


def summary_rows(results: Sequence[AnalysisResult]) -> list[list[str]]:
    """Return rows of a table: site, quantity (and the value of the varied parameter), value with interval, unit, and
    the mean of each control.
    """
    return [
        _summary(result, quantity, x_name, x)
        for result in results
        for quantity, x_name, x in dict.fromkeys((p.quantity, p.x_name, p.x) for p in result.points)
    ]


def _summary(result: AnalysisResult, quantity: str, x_name: str, x: float | None) -> list[str]:
    here = [p for p in result.points if (p.quantity, p.x) == (quantity, x)]
    own = _mean([p for p in here if not p.control])
    means = {name: _mean([p for p in here if p.control == name]) for name in dict.fromkeys(p.control for p in here)}
    beside = ", ".join(f"{name} {_value(mean)}" for name, mean in means.items() if name)
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


def analysis_panels(task: TaskResults, results: Sequence[AnalysisResult]) -> list[Panel]:
    """Return the panels for one analysis of one probe.

    Quantities with one value per site are drawn over sites. Quantities measured along a parameter (a rank, the number
    of rows) are drawn over that parameter, at the site that is best on dev.
    """
    over_sites = [_over_sites(task, results, name) for name in _quantities(results, along=False)]
    chosen = _chosen(task, results)
    along = [_along(chosen, names, x_name) for x_name, names in _curves_along(chosen).items()]
    return [panel for panel in (*over_sites, *along) if panel.curves]


def _group(task: TaskResults, analysis: str, probe: str, results: list[AnalysisResult]) -> Markup:
    panels = analysis_panels(task, results)
    chosen = _chosen(task, results)
    caption = f"{analysis} of {probe}. Bands are 95 % intervals where they were computed."
    if any(_quantities([chosen], along=True)):
        caption += (
            f" What is drawn along another axis than sites is at {chosen.site}, the best site on {task.chosen_on}."
        )
    return join([el("h3", None, f"{analysis}: {probe}"), figure(panels, task.title, caption), _numbers(results)])


def _chosen(task: TaskResults, results: Sequence[AnalysisResult]) -> AnalysisResult:
    best = task.best(results[0].probe)
    return next((result for result in results if best and result.site == best.site), results[-1])


def _quantities(results: Iterable[AnalysisResult], *, along: bool) -> list[str]:
    return list(dict.fromkeys(p.quantity for r in results for p in r.points if (p.x is not None) == along))


def _curves_along(result: AnalysisResult) -> dict[str, list[str]]:
    """Return the quantities by what they are measured along and their unit, so that each panel has one of both."""
    found: dict[str, list[str]] = {}
    for point in result.points:
        if point.x is not None and point.quantity not in found.setdefault(point.x_name, []):
            found[point.x_name].append(point.quantity)
    return found


def _over_sites(task: TaskResults, results: Sequence[AnalysisResult], quantity: str) -> Panel:
    sites = tuple(site for site in task.sites if any(result.site == site for result in results))
    controls = dict.fromkeys(p.control for r in results for p in r.of(quantity, control=None))
    curves = []
    for part, control in enumerate(controls):
        means = [(sites.index(r.site), _mean(r.of(quantity, control=control))) for r in results if r.site in sites]
        points = tuple(Point(x, p.value, p.low, p.high) for x, p in sorted(means, key=lambda m: m[0]) if p is not None)
        curves.append(Curve(control or "task", _role(quantity, control), points, part))
    unit = next(p.unit for r in results for p in r.of(quantity, control=None))
    return Panel(
        quantity_title(quantity), _axis(quantity, unit), sites, tuple(curves), (), (0.0, _least(unit)), (-1e12, 1e12)
    )


def _along(result: AnalysisResult, quantities: Sequence[str], x_name: str) -> Panel:
    points = [p for p in result.points if p.x is not None and p.x_name == x_name]
    values = sorted({p.x for p in points if p.x is not None})
    curves = []
    for part, name in enumerate(quantities):
        for control in dict.fromkeys(p.control for p in points if p.quantity == name):
            chosen = [p for p in points if (p.quantity, p.control) == (name, control)]
            means = [(i, _mean([p for p in chosen if p.x == x])) for i, x in enumerate(values)]
            drawn = tuple(Point(i, p.value, p.low, p.high) for i, p in means if p is not None)
            of_control = control and name != "selectivity"
            curves.append(Curve(control if of_control else quantity_title(name), _role(name, control), drawn, part))
    unit = points[0].unit
    title = f"{', '.join(map(quantity_title, quantities))} at {result.site}"
    return Panel(
        title,
        _axis(quantities[0], unit),
        tuple(f"{x:g}" for x in values),
        tuple(curves),
        (),
        (0.0, _least(unit)),
        (-1e12, 1e12),
        _AXES.get(x_name, x_name),
    )


def _role(quantity: str, control: str) -> Role:
    return "selectivity" if quantity == "selectivity" else "control" if control else "task"


def _mean(points: Sequence[Number]) -> Number | None:
    """Return the mean over draws that stands among the points, else compute it; None where there is none."""
    told = [p for p in points if p.draw < 0]
    if told or not points:
        return told[0] if told else None
    return Number(points[0].quantity, float(np.mean([p.value for p in points])), points[0].unit)


def _axis(quantity: str, unit: str) -> str:
    return unit if unit != "fraction" else quantity_title(quantity)


def _least(unit: str) -> float:
    return 1.0 if unit in ("fraction", "R²") else 0.1


def _numbers(results: Sequence[AnalysisResult]) -> Markup:
    head = ["site", "quantity", "control", "draw", "along", "value", "95 % interval", "unit"]
    rows = [_row(result, point) for result in results for point in result.points]
    whole = table("One row per number.", head, rows, "results")
    return el("details", None, el("summary", None, f"Every number ({plural(len(rows), 'row')})"), whole)


def _row(result: AnalysisResult, point: Number) -> list[object]:
    along = "–" if point.x is None else f"{point.x_name} {point.x:g}" + (f" ({point.label})" if point.label else "")
    draw = "–" if point.draw < 0 else point.draw + 1
    return [
        result.site,
        quantity_title(point.quantity),
        point.control or "–",
        draw,
        along,
        _value(point),
        _within(point).strip() or "–",
        point.unit,
    ]
