"""Heat maps of sites and positions, or of layers and heads: inline SVG for the page, PDF and PNG for papers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from probing.errors import BadParameter
from probing.files.whole_files import write_atomically
from probing.reporting.figures import SETTINGS, file_name, saved
from probing.reporting.markup import Markup, el, join
from probing.reporting.wording import decimal
from probing.results.patching import PatchingResult
from probing.results.use import answers_said

if TYPE_CHECKING:
    from probing.use.patching.ablating import AblationResult

CELL, LINE, LEFT, TOP = 44, 18, 96, 54
_POSITIVE, _NEGATIVE = "#D55E00", "#0072B2"
_CHARACTER = 6.3


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Numbers in rows and columns to be drawn as a heat map; NaN is left blank.

    Attributes:
        title: title above the map.
        rows, columns: names of rows and columns; the first row (the first layer of a model) is at the bottom.
        values: `(R, C)` numbers.
        label: words for what the numbers are.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    label: str

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.rows), len(self.columns)) or not np.isfinite(self.values).any():
            raise BadParameter(
                "no heat map can be drawn",
                needed=f"({len(self.rows)}, {len(self.columns)}) numbers",
                found=f"shape {self.values.shape}",
                where=self.title,
            )

    @property
    def limit(self) -> float:
        """Largest absolute value, which is drawn in full colour."""
        return float(np.nanmax(np.abs(self.values))) or 1.0


def patching_map(result: PatchingResult, title: str = "") -> HeatMap:
    """Return a map of shares of the natural difference by site and position."""
    columns = tuple(position.replace("start+", "+") or "row" for position in result.positions)
    of = f" in {answers_said(result.answers)}" if result.answers else ""
    by = f"; {result.model}" if result.model else ""
    return HeatMap(
        title or f"{result.method} patching",
        result.sites,
        columns,
        result.normalised,
        f"share of the difference between prompts{of}{by}",
    )


def ablation_map(result: AblationResult, title: str = "") -> HeatMap:
    """Return a map of effects by layer and head."""
    grid = result.grid()
    layers = sorted({component.layer for component in result.components})
    columns = tuple(str(head) for head in range(grid.shape[1])) if grid.shape[1] > 1 else ("all",)
    return HeatMap(
        title or f"{result.by} ablation",
        tuple(f"layer {layer}" for layer in layers),
        columns,
        grid,
        "change of the behaviour, in SD",
    )


def draw_heat_map(chart: HeatMap, description: str) -> Markup:
    """Return the map as an `svg` element; screen readers read `description` instead of it."""
    n_rows, n_columns = chart.values.shape
    said = f"{chart.label}; full colour: {decimal(chart.limit)}"
    width = max(LEFT + CELL * n_columns, int(_CHARACTER * max(len(said), len(chart.title)))) + 12
    height = TOP + LINE * n_rows + 30
    cells = [_cell(chart, i, j) for i in range(n_rows) for j in range(n_columns) if np.isfinite(chart.values[i, j])]
    names = [
        el("text", {"class": "tick", "x": LEFT - 6, "y": _y(chart, i) + 13, "text-anchor": "end"}, _fitted(name, LEFT))
        for i, name in enumerate(chart.rows)
    ]
    heads = [
        el("text", {"class": "tick", "x": _x(j) + CELL / 2, "y": TOP - 6, "text-anchor": "middle"}, _fitted(name, CELL))
        for j, name in enumerate(chart.columns)
    ]
    return el(
        "svg",
        {
            "viewBox": f"0 0 {width} {height}",
            "width": width,
            "role": "img",
            "aria-label": description,
            "class": "chart map",
        },
        el("text", {"class": "title", "x": 6, "y": 16}, chart.title),
        el("text", {"class": "label", "x": 6, "y": height - 8}, said),
        *heads,
        *names,
        *cells,
    )


def save_heat_map(chart: HeatMap, folder: Path | str) -> list[Path]:
    """Save the map as PDF and PNG into `folder`; equal maps give equal bytes."""
    return saved(lambda: _figure(chart), Path(folder) / file_name(f"map {chart.title}"))


def save_svg(chart: HeatMap, path: Path) -> Path:
    """Save the map as SVG, whole or not at all; equal maps give equal bytes."""
    stream = io.BytesIO()
    settings = {**SETTINGS, "svg.hashsalt": "probing", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        _figure(chart, with_numbers=True).savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, stream.getvalue())
    return path


def _figure(chart: HeatMap, *, with_numbers: bool = False) -> Figure:
    n_rows, n_columns = chart.values.shape
    figure = Figure(figsize=(1.8 + 0.45 * n_columns, max(2.2, 1.2 + 0.22 * n_rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    drawn = axes.imshow(chart.values, cmap="RdBu_r", vmin=-chart.limit, vmax=chart.limit, aspect="auto", origin="lower")
    axes.set_xticks(range(n_columns), chart.columns, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(n_rows), chart.rows, parse_math=False)
    axes.set_title(chart.title, fontsize=8, parse_math=False)
    if with_numbers:
        for (i, j), value in np.ndenumerate(chart.values):
            if np.isfinite(value):
                ink = "white" if abs(value) > 0.7 * chart.limit else "black"
                axes.text(j, i, decimal(float(value), 2), ha="center", va="center", fontsize=5.5, color=ink)
    figure.colorbar(drawn, ax=axes, label=chart.label)
    return figure


def _cell(chart: HeatMap, i: int, j: int) -> Markup:
    value = float(chart.values[i, j])
    place = {"x": _x(j), "y": _y(chart, i), "width": CELL - 1, "height": LINE - 1}
    hint = el("title", None, f"{chart.rows[i]}, {chart.columns[j]}: {decimal(value)}")
    colour = {"fill": _POSITIVE if value > 0 else _NEGATIVE, "fill-opacity": f"{abs(value) / chart.limit * 0.85:.2f}"}
    text = el(
        "text",
        {"class": "tick", "x": _x(j) + CELL / 2, "y": _y(chart, i) + 13, "text-anchor": "middle"},
        decimal(value, 2),
    )
    return join([el("rect", {**place, **colour}, hint), text])


def _x(column: int) -> int:
    return LEFT + CELL * column


def _y(chart: HeatMap, row: int) -> int:
    return TOP + LINE * (len(chart.rows) - 1 - row)


def _fitted(text: str, width: int) -> str:
    most = max(2, int(width / _CHARACTER))
    return text if len(text) <= most else text[: most - 1] + "…"


def maps_section(maps: Sequence[HeatMap], anchor: str) -> Markup:
    """Return heat maps side by side, as a section of the page; nothing where there are none."""
    if not maps:
        return Markup("")
    drawn = (draw_heat_map(chart, f"{chart.title}, {chart.label}: {_largest(chart)}") for chart in maps)
    caption = (
        "States of one prompt put into another, place by place: 0 changes nothing, 1 gives the other prompt's "
        "behaviour. It shows where a difference travels, for these prompts; it tests no hypothesis."
    )
    return el(
        "section",
        None,
        el("h2", {"id": anchor}, "Patching"),
        el("figure", None, el("div", {"class": "panels"}, *drawn), el("figcaption", None, caption)),
    )


def _largest(chart: HeatMap) -> str:
    i, j = divmod(int(np.nanargmax(np.abs(chart.values))), len(chart.columns))
    return f"largest {decimal(float(chart.values[i, j]))} at {chart.rows[i]}, {chart.columns[j]}"
