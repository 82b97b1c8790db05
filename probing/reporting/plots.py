"""Charts of complete results, as `.plot()` returns them and the folder `figures` holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from probing.errors import printable, unknown_name
from probing.provenance import model_called
from probing.reporting.across_models import across_models, charts
from probing.reporting.charts import Chart, panel_chart
from probing.reporting.drawing import altair_chart, file_name, save, together
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
from probing.reporting.panels import analysis_panels, loss_panel, score_panels
from probing.reporting.probe_card import card_rows, title_of
from probing.reporting.task_results import TaskResults, by_task, distinct
from probing.reporting.use_panels import Use, use_panels, uses
from probing.reporting.warnings import warnings_of_task
from probing.reporting.wording import plural
from probing.text.sources import split_order

if TYPE_CHECKING:
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
    if what == "overview":
        return altair_chart(together([overview_chart(overview([(task, (), "") for task in tasks]))]))
    kinds: dict[str, Callable[[TaskResults], list[Chart]]] = {
        "scores": _scores,
        "analyses": _analyses,
        "confusion": _confusion,
    }
    if what == "models":
        compared = across_models(tasks)
        return altair_chart(
            together(
                [_about(chart, one.task if len(compared) > 1 else "") for one in compared for chart in charts(one)]
            )
        )
    if what not in kinds:
        raise unknown_name("chart", what, ("overview", "models", *kinds))
    several = len(tasks) > 1
    return altair_chart(
        together([_about(chart, task.title if several else "") for task in tasks for chart in kinds[what](task)])
    )


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
    """Return a chart of what probes read beside what edits did, of every property and behaviour."""
    found = uses(run)
    several = len({use.result.behaviour for use in found}) > 1
    names = _names(found) if several else distinct([(u.result.task, u.result.model, u.result.unit) for u in found])
    charts = [
        _about(panel_chart(panel), name) for use, name in zip(found, names, strict=True) for panel in use_panels(use)
    ]
    return altair_chart(together(charts))


def _names(found: Sequence[Use]) -> list[str]:
    return distinct([(f"{u.result.task} {u.result.behaviour}".strip(), u.result.model, u.result.unit) for u in found])


def plot_patching(result: PatchingResult, title: str = "") -> Any:
    """Return the heat map of shares by site and position."""
    return altair_chart(together([map_chart(patching_map(result, title))]))


def plot_ablation(result: AblationResult, title: str = "") -> Any:
    """Return the heat map of effects by layer and head."""
    return altair_chart(together([map_chart(ablation_map(result, title))]))


def plot_transfer(results: Sequence[CrossResult]) -> Any:
    """Return heat maps of scores by source trained on and source tested on."""
    return altair_chart(together([map_chart(one) for one in transfer_maps(results)]))


def save_map(found: HeatMap, stem: Path) -> list[Path]:
    """Save a heat map as SVG and PDF."""
    return save(map_chart(found), stem)


def save_figures(found: Contents, folder: Path) -> list[Path]:
    """Write a figure of every task, analysis, property asked for use, and map, as SVG and PDF; equal results give equal
    bytes.
    """
    drawn: dict[str, list[Chart]] = {}
    for task in found.tasks:
        drawn[f"curves-{file_name(task.title)}"] = _scores(task)
        for (analysis, probe), results in task.analyses_by_kind().items():
            drawn[file_name(f"{analysis} {probe} {task.title}")] = [
                panel_chart(p) for p in analysis_panels(task, results)
            ]
    drawn |= {f"models-{file_name(one.task)}": charts(one) for one in found.across}
    for use, title in zip(found.uses, _names(found.uses), strict=True):
        drawn[f"use-{file_name(title)}"] = [panel_chart(panel) for panel in use_panels(use)]
    for one in (*found.patching, *transfer_maps(found.transfer)):
        drawn[file_name(f"map {one.title}")] = [map_chart(one)]
    if found.tasks or found.uses:
        drawn["overview"] = [overview_chart(overview(found.entries()))]
    return [path for name, charts in drawn.items() if charts for path in save(together(charts), folder / name)]


_STYLE = "text-align:left;vertical-align:top;padding:.15em .8em .15em 0"
_MOST = 12


def card(thing: Any) -> str:
    """Return HTML for an object of this package; what it holds is escaped.

    Raises:
        TypeError: there is no card for its kind.
    """
    for kind in type(thing).__mro__:
        if kind.__name__ in _CARDS:
            title, rows = _CARDS[kind.__name__](thing)
            return _table(title, rows)
    raise TypeError(f"no card for {type(thing).__name__}; there is one for {', '.join(_CARDS)}")


def _table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    body = Markup("").join(
        Markup('<tr><th style="{style}">{name}</th><td style="{style}">{value}</td></tr>').format(
            style=_STYLE, name=escape(printable(name)), value=escape(printable(str(value)))
        )
        for name, value in rows
    )
    return str(Markup("<table><caption><b>{}</b></caption><tbody>{}</tbody></table>").format(printable(title), body))


def _some(names: Iterable[object]) -> str:
    listed = list(map(str, names))
    return ", ".join(listed[:_MOST]) + (f" and {len(listed) - _MOST} more" if len(listed) > _MOST else "") or "none"


def _corpus(corpus: Any) -> tuple[str, list[tuple[str, object]]]:
    sizes = Counter(example.split or "no split" for example in corpus.examples)
    words = sum(len(example.forms) for example in corpus.examples)
    first = corpus.examples[0].text if corpus.examples else ""
    return f"Corpus of {plural(len(corpus), 'example')}", [
        ("source", ", ".join(Path(part.strip()).name for part in corpus.source.split(","))),
        ("splits", ", ".join(f"{name} {sizes[name]:,}" for name in sorted(sizes, key=split_order))),
        ("words", f"{words:,}"),
        ("columns", _some(corpus.column_names())),
        ("first", first[:160] + ("…" if len(first) > 160 else "")),
    ]


def _model(model: Any) -> tuple[str, list[tuple[str, object]]]:
    return model_called(model.identity()["model"]), [
        ("sites", f"{len(model.sites)}: {_some(model.sites)}"),
        ("type of numbers", model.dtype),
        ("on", model.device),
        ("longest input", f"{model.max_length} pieces" if model.max_length else "no limit"),
    ]


def _store(store: Any) -> tuple[str, list[tuple[str, object]]]:
    return f"Store {store.path}", [
        ("model", model_called(store.identity["model"])),
        ("corpus", store.identity["corpus"].get("source", "")),
        ("sites", f"{len(store.sites)}: {_some(store.sites)}"),
        ("rows", f"{len(store.rows.example):,}"),
        ("content", store.content_id[:12]),
    ]


def _results(results: Any) -> tuple[str, list[tuple[str, object]]]:
    tasks = by_task(list(results))
    rows: list[tuple[str, object]] = [(row.name, row.line) for row in overview(entries(tasks, ())).rows]
    doubts = [(f"warning: {task.title}", said) for task in tasks for said in warnings_of_task(task)]
    return f"What probes read ({plural(len(results), 'result')})", rows + doubts


def _use(run: Any) -> tuple[str, list[tuple[str, object]]]:
    found = overview(entries((), uses(run)))
    doubts = [(f"doubtful: {one.task}", doubt) for one in run.results for doubt in one.doubts]
    return f"What edits showed ({plural(len(run.verdicts), 'verdict')})", [
        (r.name, r.line) for r in found.rows
    ] + doubts


def _verdict(verdict: Any) -> tuple[str, list[tuple[str, object]]]:
    return f"{verdict.task} at {verdict.place}: {verdict.text}", [
        ("of", verdict.model or "the model"),
        ("behaviour", verdict.behaviour or "none named"),
        ("because", verdict.reason),
        ("flags", ", ".join(verdict.flags) or "none"),
        ("overturned by", verdict.overturned_by),
    ]


def _probe(probe: Any) -> tuple[str, list[tuple[str, object]]]:
    return title_of(probe), list(card_rows(probe))


_CARDS = {
    "Corpus": _corpus,
    "LanguageModel": _model,
    "Store": _store,
    "Probe": _probe,
    "ProbeResults": _results,
    "UseRun": _use,
    "Verdict": _verdict,
}
