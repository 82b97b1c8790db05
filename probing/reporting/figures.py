"""Figures for papers: the page's curves as PDF and PNG."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from probing.analysis import AnalysisResult
from probing.records import ProbeResult
from probing.reporting.analyses import analysis_panels
from probing.reporting.curves import Curve, Panel, loss_panel, score_panels
from probing.reporting.task_results import TaskResults, by_task

_COLOURS = {"control": "#D55E00", "selectivity": "#009E73", "ceiling": "#666666", "entropy": "#000000"}
_TASK = ("#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#009E73", "#D55E00")
_BASELINE = ("#999999", "#555555", "#BBBBBB", "#777777")
_MARKERS = {"task": "o", "control": "s", "selectivity": "D"}
_STYLES = {"ceiling": (0, (5, 2)), "baseline": (0, (1, 1.5)), "entropy": (0, (3, 1, 1, 1))}
SETTINGS: Any = {"pdf.fonttype": 42, "font.size": 8.0, "axes.spines.top": False, "axes.spines.right": False}


def save_curves(
    results: Sequence[ProbeResult], folder: Path | str, analyses: Sequence[AnalysisResult] = ()
) -> list[Path]:
    """Write a figure per task and per analysis, as PDF and PNG, into `folder`; equal results give equal bytes."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    return [path for task in by_task(results, analyses) if task.results for path in _save(task, place)]


def _save(task: TaskResults, folder: Path) -> list[Path]:
    last = loss_panel(task)
    paths = _write(task, [*score_panels(task), *([last] if last else [])], folder / f"curves-{file_name(task.title)}")
    for (analysis, probe), results in task.analyses_by_kind().items():
        panels = analysis_panels(task, results)
        paths += _write(task, panels, folder / f"{file_name(f'{analysis} {probe} {task.title}')}") if panels else []
    return paths


def _write(task: TaskResults, panels: Sequence[Panel], stem: Path) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = _figure(task, panels)
        figure.savefig(paths[0], metadata={"CreationDate": None, "Producer": None, "Creator": None})
        figure.savefig(paths[1], dpi=200, metadata={"Software": None})
    return paths


def file_name(title: str) -> str:
    """A task's title as part of a file name: letters, digits, dots and dashes; a hash where characters were lost."""
    kept = re.sub(r"[^A-Za-z0-9._]+", "-", title).strip("-.")[:60]
    marked = kept if kept == title else f"{kept}-{hashlib.sha256(title.encode('utf-8', 'replace')).hexdigest()[:6]}"
    return marked.strip("-")


def _figure(task: TaskResults, panels: Sequence[Panel]) -> Figure:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(task.title, parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i < len(panels):
            _draw(axes, panels[i])
        else:
            axes.set_axis_off()
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        _draw_curve(axes, panel, curve)
    for level in panel.levels:
        axes.axhline(
            level.points[0].value,
            color=_colour(level),
            linestyle=_STYLES[level.role],
            linewidth=1,
            label=_plain(level.name),
        )
    names, label = panel.x_ticks()
    every = max(1, -(-len(names) * max(map(len, names)) // 30))
    axes.set_xticks(range(0, len(names), every), names[::every], parse_math=False)
    axes.set_xlabel(label)
    axes.set_ylabel(panel.y_label)
    axes.set_ylim(*panel.y_range())
    axes.set_title(panel.title, fontsize=8, parse_math=False)
    axes.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_curve(axes: Axes, panel: Panel, curve: Curve) -> None:
    colour, label = _colour(curve), _plain(curve.name)
    for run in panel.runs(curve):
        xs, values = [p.x for p in run], [p.value for p in run]
        axes.plot(
            xs, values, color=colour, linestyle=_STYLES.get(curve.role, "-"), marker=_MARKERS.get(curve.role, ""),
            markersize=2.5, linewidth=1.2, label=label,
        )  # fmt: skip
        lows, highs = [p.low for p in run if p.low is not None], [p.high for p in run if p.high is not None]
        if len(lows) == len(highs) == len(run) > 1:
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)
        elif len(lows) == len(highs) == len(run):
            axes.vlines(xs, lows, highs, color=colour, linewidth=1)
        label = "_nolegend_"


def _colour(curve: Curve) -> str:
    if curve.role == "task":
        return _TASK[curve.part % len(_TASK)]
    return _BASELINE[curve.part % len(_BASELINE)] if curve.role == "baseline" else _COLOURS[curve.role]


def _plain(name: str) -> str:
    return name.replace("$", r"\$").lstrip("_") or "-"
