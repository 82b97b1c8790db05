"""Figures for papers: the page's curves as PDF and PNG."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from probing.files.whole_files import write_atomically
from probing.reporting.analyses import analysis_panels
from probing.reporting.curves import Curve, Panel, Point, loss_panel, score_panels, use_panels, uses
from probing.reporting.task_results import TaskResults, by_task, distinct
from probing.results.analysis import AnalysisResult
from probing.results.probe import ProbeResult
from probing.verdicts.use_run import UseRun

_COLOURS = {"control": "#D55E00", "selectivity": "#009E73", "ceiling": "#666666", "entropy": "#000000"}
_TASK = ("#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#009E73", "#D55E00")
_BASELINE = ("#999999", "#555555", "#BBBBBB", "#777777")
_MARKERS = {"task": "o", "other": "o", "control": "s", "selectivity": "D"}
_SHAPES = {"disc": "o", "diamond": "D", "square": "s", "triangle": "^", "ring": "o", "cross": "x", "dash": "_"}
_OPEN = ("square", "triangle", "ring")
_STYLES = {"other": (0, (4, 2)), "ceiling": (0, (5, 2)), "baseline": (0, (1, 1.5)), "entropy": (0, (3, 1, 1, 1))}
SETTINGS: Any = {"pdf.fonttype": 42, "font.size": 8.0, "axes.spines.top": False, "axes.spines.right": False}


def save_curves(
    results: Sequence[ProbeResult], folder: Path | str, analyses: Sequence[AnalysisResult] = ()
) -> list[Path]:
    """Write a figure per task and per analysis, as PDF and PNG, into `folder`; equal results give equal bytes."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    return [path for task in by_task(results, analyses) if task.results for path in _save(task, place)]


def save_use_curves(run: UseRun | None, folder: Path | str) -> list[Path]:
    """Write a figure for each property and behaviour, decodability beside use, as PDF and PNG; nothing if there is no
    run.
    """
    paths: list[Path] = []
    found = uses(run)
    names = distinct([(f"{u.result.task} {u.result.behaviour}".strip(), u.result.model, u.result.unit) for u in found])
    for use, title in zip(found, names, strict=True):
        paths += _write(title, use_panels(use), Path(folder) / f"use-{file_name(title)}")
    return paths


def _save(task: TaskResults, folder: Path) -> list[Path]:
    last = loss_panel(task)
    paths = _write(
        task.title, [*score_panels(task), *([last] if last else [])], folder / f"curves-{file_name(task.title)}"
    )
    for (analysis, probe), results in task.analyses_by_kind().items():
        panels = analysis_panels(task, results)
        paths += (
            _write(task.title, panels, folder / f"{file_name(f'{analysis} {probe} {task.title}')}") if panels else []
        )
    return paths


def _write(title: str, panels: Sequence[Panel], stem: Path) -> list[Path]:
    return saved(partial(_figure, title, panels), stem)


def saved(draw: Callable[[], Figure], stem: Path) -> list[Path]:
    """Save a drawing as PDF and PNG, each whole or not at all; both are drawn before either is written."""
    pdf, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = draw()
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]
    for path, stream in zip(paths, (pdf, png), strict=True):
        write_atomically(path, stream.getvalue())
    return paths


def file_name(title: str) -> str:
    """Return a task's title as part of a file name, with letters, digits, dots and dashes only; a hash is added if
    characters were lost.
    """
    kept = re.sub(r"[^A-Za-z0-9._]+", "-", title).strip("-.")[:60]
    marked = kept if kept == title else f"{kept}-{hashlib.sha256(title.encode('utf-8', 'replace')).hexdigest()[:6]}"
    return marked.strip("-")


def _figure(title: str, panels: Sequence[Panel]) -> Figure:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i < len(panels):
            _draw(axes, panels[i])
        else:
            axes.set_axis_off()
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.band is not None:
        axes.axhspan(*panel.band, color="#999999", alpha=0.2, linewidth=0)
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
    for shape, note in dict.fromkeys((p.mark, p.note) for curve in panel.curves for p in curve.points if p.mark):
        face = "white" if shape in _OPEN else "black"
        axes.plot(
            [],
            [],
            color="black",
            marker=_SHAPES.get(shape, "o"),
            markerfacecolor=face,
            markersize=4.5,
            linestyle="",
            label=_plain(note),
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
        xs, values = [p.x + curve.shift for p in run], [p.value for p in run]
        marked = any(p.mark for p in run)
        axes.plot(
            xs,
            values,
            color=colour,
            linestyle=_STYLES.get(curve.role, "-"),
            linewidth=1.2,
            label=label,
            marker="" if marked else _MARKERS.get(curve.role, ""),
            markersize=2.5,
        )
        if marked:
            _draw_marks(axes, run, xs, colour)
        lows, highs = [p.low for p in run if p.low is not None], [p.high for p in run if p.high is not None]
        if curve.bars and len(lows) == len(highs) == len(run):
            axes.vlines(xs, lows, highs, color=colour, linewidth=1)
        elif len(lows) == len(highs) == len(run) > 1:
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)
        elif len(lows) == len(highs) == len(run):
            axes.vlines(xs, lows, highs, color=colour, linewidth=1)
        label = "_nolegend_"


def _draw_marks(axes: Axes, run: Sequence[Point], xs: Sequence[float], colour: str) -> None:
    """Draw the shapes of verdicts, as on the page."""
    for x, point in zip(xs, run, strict=True):
        face = "white" if point.mark in _OPEN else colour
        axes.plot(
            [x],
            [point.value],
            color=colour,
            marker=_SHAPES.get(point.mark, "o"),
            markerfacecolor=face,
            markersize=4.5 if point.mark else 2.5,
            linestyle="",
            zorder=3,
            label="_nolegend_",
        )


def _colour(curve: Curve) -> str:
    if curve.role in ("task", "other"):
        return _TASK[curve.part % len(_TASK)]
    return _BASELINE[curve.part % len(_BASELINE)] if curve.role == "baseline" else _COLOURS[curve.role]


def _plain(name: str) -> str:
    return name.replace("$", r"\$").lstrip("_") or "-"
