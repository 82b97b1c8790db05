"""Draws charts of complete results, for `.plot()` and for the folder `figures`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import BadParameter, unknown_name
from probing.reporting.across_models import across_models, charts
from probing.reporting.charts import Chart, panel_chart
from probing.reporting.drawing import altair_chart, file_name, save, together
from probing.reporting.features_sections import features_panel
from probing.reporting.grids import (
    HeatMap,
    ablation_map,
    confusion_map,
    map_chart,
    overview_chart,
    patching_map,
    transfer_maps,
)
from probing.reporting.overview import entries, overview
from probing.reporting.panels import Curve, Panel, Point, analysis_panels, loss_panel, score_panels
from probing.reporting.probe_card import card_rows, title_of
from probing.reporting.similarity_sections import charts_of as similarity_charts
from probing.reporting.task_results import TaskResults, by_task, distinct
from probing.reporting.use_panels import Use, use_panels, uses
from probing.reporting.warnings import warnings_of_task
from probing.reporting.wording import plural
from probing.system.screen import card

if TYPE_CHECKING:
    from probing.plantbench.scorecard import Scorecard
    from probing.reporting.page import Contents
    from probing.results.analysis import AnalysisResult
    from probing.results.patching import PatchingResult
    from probing.results.probe import ProbeResult
    from probing.results.transfer import CrossResult
    from probing.use.patching.ablating import AblationResult
    from probing.verdicts.verdict import UseRun


def plot_results(
    results: Sequence[ProbeResult], analyses: Sequence[AnalysisResult] = (), what: str = "overview"
) -> Any:
    """Return a chart of results: `overview`, `scores`, `models`, `analyses` or `confusion`.

    Raises:
        UnknownName: there is no chart of this name.
        BadParameter: the results have nothing that this chart shows.
    """
    tasks = by_task(results, analyses)
    kinds: dict[str, Callable[[TaskResults], list[Chart]]] = {
        "scores": _scores,
        "analyses": _analyses,
        "confusion": _confusion,
    }
    if what == "overview":
        return _drawn([overview_chart(overview([(task, (), "") for task in tasks]))])
    if what == "models":
        compared = across_models(tasks)
        return _drawn([_about(one, c.task if len(compared) > 1 else "") for c in compared for one in charts(c)])
    if what not in kinds:
        raise unknown_name("chart", what, ("overview", "models", *kinds))
    return _drawn([_about(one, t.title if len(tasks) > 1 else "") for t in tasks for one in kinds[what](t)])


def _drawn(charts: Sequence[Chart]) -> Any:
    """Return charts side by side as an Altair chart."""
    return altair_chart(together(charts))


def _about(chart: Chart, what: str) -> Chart:
    """Return the chart with a second title, which tells it from others beside it; "": none."""
    if not what:
        return chart
    title = chart["title"] if isinstance(chart["title"], dict) else {"text": chart["title"]}
    more = f"{what}: {title['subtitle']}" if "subtitle" in title else what
    return chart | {"title": title | {"subtitle": more}}


def _scores(task: TaskResults) -> list[Chart]:
    last = loss_panel(task)
    return [panel_chart(panel) for panel in (*score_panels(task), *([last] if last else []))] if task.results else []


def _analyses(task: TaskResults) -> list[Chart]:
    return [
        _about(panel_chart(panel), probe)
        for (_, probe), found in task.analyses_by_kind().items()
        for panel in analysis_panels(task, found)
    ]


def _confusion(task: TaskResults) -> list[Chart]:
    found = confusion_map(task)
    return [map_chart(found)] if found else []


def plot_use(run: UseRun) -> Any:
    """Return a chart of probe scores and effects of edits, for every property and behaviour."""
    found = uses(run)
    several = len({use.result.behaviour for use in found}) > 1
    names = _names(found) if several else distinct([(u.result.task, u.result.model, u.result.unit) for u in found])
    both = zip(found, names, strict=True)
    return _drawn([_about(panel_chart(panel), name) for use, name in both for panel in use_panels(use)])


def _names(found: Sequence[Use]) -> list[str]:
    return distinct([(f"{u.result.task} {u.result.behaviour}".strip(), u.result.model, u.result.unit) for u in found])


def plot_patching(result: PatchingResult, title: str = "") -> Any:
    """Return the heat map of a patching result: shares by site and position."""
    return _drawn([map_chart(patching_map(result, title))])


def plot_ablation(result: AblationResult, title: str = "") -> Any:
    """Return the heat map of an ablation result: effects by layer and head."""
    return _drawn([map_chart(ablation_map(result, title))])


def plot_transfer(results: Sequence[CrossResult]) -> Any:
    """Return heat maps of scores by training source and test source."""
    return _drawn([map_chart(one) for one in transfer_maps(results)])


# Of the chart of a score card: a name, and the fields of its rate and of the rate's interval.
_ERRORS = (
    ("unused, called used", ("fpr", "fpr_low", "fpr_high")),
    ("used, called unused", ("false_unused", "false_unused_low", "false_unused_high")),
    ("no answer", ("abstention", "", "")),
)
_SHARES = (("Used cells, called used", "recall_used"), ("Unused cells, called used", "fpr"))


def plot_scorecard(found: Scorecard) -> Any:
    """Return a chart of a score card: rates of errors and of abstention by rule; where power was measured, shares
    called used by value of the knob.

    Raises:
        BadParameter: no rule was scored, and no power was measured.
    """
    panels = [_rule_panel(found.rates())] if any(found.scored.values()) else []
    for knob, by_value in found.power.items():
        panels += [_power_panel(knob, by_value, title, share) for title, share in _SHARES]
    if not panels:
        raise BadParameter("a score card without answers has no chart", needed="a rule that was scored", found="none")
    return _drawn([panel_chart(panel) for panel in panels])


def _rule_panel(rates: Mapping[str, Any]) -> Panel:
    curves = []
    for part, (name, (rate, low, high)) in enumerate(_ERRORS):
        ends = [(getattr(one, low, None), getattr(one, high, None)) for one in rates.values()]
        values = [getattr(one, rate) for one in rates.values()]
        known = [(x, value, *end) for x, (value, end) in enumerate(zip(values, ends, strict=True)) if value is not None]
        points = tuple(Point(x, value, low, high) for x, value, low, high in known)
        curves += [Curve(name, "task", points, part, True, 0.12 * (part - 1))] if points else []
    return Panel("Answers of each rule", "share of cells", tuple(rates), tuple(curves), most=(0, 1), x_label="rule")


def _power_panel(knob: str, by_value: Mapping[float, Mapping[str, Any]], title: str, share: str) -> Panel:
    curves = []
    for part, rule in enumerate(next(iter(by_value.values()))):
        values = enumerate(getattr(row[rule], share) for row in by_value.values())
        points = tuple(Point(x, value) for x, value in values if value is not None)
        curves += [Curve(rule, "task", points, part)] if points else []
    names, places = tuple(f"{place:g}" for place in by_value), tuple(by_value)
    return Panel(title, "share", names, tuple(curves), most=(0, 1), x_label=knob, places=places)


def save_map(found: HeatMap, stem: Path) -> list[Path]:
    """Save a heat map as SVG and PDF, and return their paths."""
    return save(map_chart(found), stem)


def save_figures(found: Contents, folder: Path) -> list[Path]:
    """Write a figure of every task, analysis, tested use and map as SVG and PDF, and return the paths. Equal results
    give equal SVG; a PDF is rewritten only if its SVG changes.
    """
    drawn: dict[str, list[Chart]] = {}
    for task in found.tasks:
        drawn[f"curves-{file_name(task.title)}"] = _scores(task)
        for (analysis, probe), results in task.analyses_by_kind().items():
            drawn[file_name(f"{analysis} {probe} {task.title}")] = [
                panel_chart(p) for p in analysis_panels(task, results)
            ]
        for compared in task.features:
            drawn[file_name(f"{compared.result.analysis} {task.title}")] = [panel_chart(features_panel(compared))]
    drawn |= {f"models-{file_name(one.task)}": charts(one) for one in found.across}
    for use, title in zip(found.uses, _names(found.uses), strict=True):
        drawn[f"use-{file_name(title)}"] = [panel_chart(panel) for panel in use_panels(use)]
    for one in (*found.patching, *transfer_maps(found.transfer)):
        drawn[file_name(f"map {one.title}")] = [map_chart(one)]
    if found.similarity:
        drawn["similarity"] = similarity_charts(list(found.similarity))
    if found.tasks or found.uses:
        drawn["overview"] = [overview_chart(overview(found.entries()))]
    return [path for name, charts in drawn.items() if charts for path in save(together(charts), folder / name)]


def results_card(results: Any) -> str:
    """Return the notebook card (HTML) of results of probes: a line for each property, and warnings about its data."""
    tasks = by_task(list(results))
    rows: list[tuple[str, object]] = [(row.name, row.line) for row in overview(entries(tasks, ())).rows]
    rows += [(f"warning: {task.title}", said) for task in tasks for said in warnings_of_task(task)]
    return card(f"What probes read ({plural(len(results), 'result')})", rows)


def use_card(run: Any) -> str:
    """Return the notebook card (HTML) of a use run: a line for each property, and the doubts about its behaviours."""
    rows: list[tuple[str, object]] = [(row.name, row.line) for row in overview(entries((), uses(run))).rows]
    rows += [(f"doubtful: {one.task}", doubt) for one in run.results for doubt in one.doubts]
    return card(f"What edits showed ({plural(len(run.verdicts), 'verdict')})", rows)


def probe_card(probe: Any) -> str:
    """Return the notebook card (HTML) of a saved probe."""
    return card(title_of(probe), card_rows(probe))
