"""Makes heat maps, and the overview of properties by sites, as Vega-Lite specifications."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, printable
from probing.reporting.charts import INK, Chart, Row, ink, layer, named, nominal, rounded, shape_encodings, tip
from probing.reporting.names import chosen_line, fitted, quoted, width_of
from probing.reporting.overview import Cell, Overview
from probing.reporting.panels import site_ticks
from probing.reporting.task_results import TaskResults, site_order
from probing.reporting.wording import decimal, measure_title, plural
from probing.results.patching import PatchingResult
from probing.results.use import answers_said

if TYPE_CHECKING:
    from probing.results.transfer import CrossResult
    from probing.use.patching.ablating import AblationResult


_MOST_CLASSES = 25


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Holds a heat map of numbers; NaN is left blank.

    Attributes:
        title: text above the map.
        rows, columns: names of the R rows and C columns.
        values: `(R, C)` numbers.
        label: quantity and unit of the numbers.
        y_label, x_label: labels of the axes of rows and columns.
        is_upward: whether the first row is drawn at the bottom, as the first layer of a model.
        is_share: whether the numbers are shares, so that 1 has full colour and maps can be compared.
        least_limit: a value that has full colour even if no number is as large, so that maps can be compared.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    label: str
    y_label: str = ""
    x_label: str = ""
    is_upward: bool = False
    is_share: bool = False
    least_limit: float = 0.0

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.rows), len(self.columns)) or not np.isfinite(self.values).any():
            raise BadParameter(
                "no heat map can be drawn",
                needed=f"({len(self.rows)}, {len(self.columns)}) numbers",
                found=f"shape {self.values.shape}",
                where=self.title,
            )

    @classmethod
    def of_cells(
        cls, title: str, cells: Iterable[tuple[str, str, float]], label: str, y_label: str, x_label: str, **more: Any
    ) -> HeatMap:
        """Return the heat map of triples (row, column, number); `more` has other attributes. Rows and columns stand in
        the order in which they first occur, unless `more` names them.
        """
        known = list(cells)
        rows = tuple(more.pop("rows", dict.fromkeys(row for row, _, _ in known)))
        columns = tuple(more.pop("columns", dict.fromkeys(column for _, column, _ in known)))
        values = np.full((len(rows), len(columns)), np.nan)
        for row, column, value in known:
            values[rows.index(row), columns.index(column)] = value
        return cls(title, rows, columns, values, label, y_label, x_label, **more)

    @property
    def limit(self) -> float:
        """Value with full colour: the largest absolute value, at least `least_limit` and, for shares, 1."""
        largest = max(self.least_limit, float(np.nanmax(np.abs(self.values)))) or 1.0
        return max(1.0, largest) if self.is_share else largest

    @property
    def description(self) -> str:
        """Description in words: title, quantity, and the largest absolute value with its row and column."""
        i, j = divmod(int(np.nanargmax(np.abs(self.values))), len(self.columns))
        largest = f"largest {decimal(float(self.values[i, j]))} at {self.rows[i]}, {self.columns[j]}"
        return f"{self.title}, {self.label}: {largest}"


def patching_map(result: PatchingResult, title: str = "") -> HeatMap:
    """Return a heat map of the shares of the difference between prompts, by site and position."""
    columns = tuple(position.replace("start+", "+") or "row" for position in result.positions)
    of = f" in {answers_said(result.answers)}" if result.answers else ""
    by = f"; {result.model}" if result.model else ""
    return HeatMap(
        title or f"{result.method} patching",
        result.sites,
        columns,
        result.normalised,
        f"share of the difference between prompts{of}; {plural(result.n_pairs, 'pair')}{by}",
        "site",
        "position",
        is_upward=True,
        is_share=True,
    )


def ablation_map(result: AblationResult, title: str = "") -> HeatMap:
    """Return a heat map of the effects of ablation in SD, by layer and head."""
    grid = result.grid()
    layers = sorted({component.layer for component in result.components})
    columns = tuple(str(head) for head in range(grid.shape[1])) if grid.shape[1] > 1 else ("all",)
    return HeatMap(
        title or f"{result.by} ablation",
        tuple(f"layer {layer}" for layer in layers),
        columns,
        grid,
        "change of the behaviour, in SD",
        "layer",
        "head" if grid.shape[1] > 1 else "",
        is_upward=True,
    )


def transfer_maps(results: Sequence[CrossResult]) -> list[HeatMap]:
    """Return a heat map for each model, task and probe, of the first measure: training sources by test sources if there
    is one site, pairs of sources by sites if there are several.
    """
    groups: dict[tuple[str, str, str], list[CrossResult]] = {}
    for one in results:
        groups.setdefault((one.task, one.probe, str(one.provenance.get("model") or "")), []).append(one)
    several = len({model for _, _, model in groups}) > 1
    return [
        _transfer_map(task, f"{probe}, {model}" if several else probe, group)
        for (task, probe, model), group in groups.items()
    ]


def _transfer_map(task: str, probe: str, group: Sequence[CrossResult]) -> HeatMap:
    measure = group[0].measure
    chosen = [one for one in group if one.measure == measure]
    sites = sorted({one.site for one in chosen}, key=site_order)
    title, label = f"{task}: {probe}", f"{measure_title(measure)} on test rows"
    if len(sites) == 1:
        title += f" at {sites[0]}" if not sites[0].startswith("(") else ""
        cells = [(one.trained_on, one.tested_on, one.score.value) for one in chosen]
        axes = ("trained on", "tested on")
    else:
        cells = [(f"{one.trained_on} → {one.tested_on}", one.site, one.score.value) for one in chosen]
        axes = ("trained on → tested on", "site")
    sizes = sorted({one.score.n for one in chosen})
    label += f"; n {sizes[0]:,}" + (f" to {sizes[-1]:,}" if len(sizes) > 1 else "")
    is_share = chosen[0].score.unit in ("fraction", "R²")
    more: dict[str, Any] = {} if len(sites) == 1 else {"columns": sites}
    return HeatMap.of_cells(title, cells, label, *axes, is_share=is_share, **more)


def confusion_map(task: TaskResults) -> HeatMap | None:
    """Return a heat map of the share of each true label that is predicted as each label, at the site and probe that are
    best on dev, for the 25 most frequent labels; None if there are no classes.
    """
    best = task.best()
    if best is None or not best.confusion or not best.classes:
        return None
    counts = np.asarray(best.confusion, dtype=np.float64)
    totals = counts.sum(1)
    kept = np.sort(np.argsort(-totals, kind="stable")[:_MOST_CLASSES])
    if not totals[kept].any():
        return None
    shares = counts[np.ix_(kept, kept)] / np.where(totals[kept] > 0, totals[kept], np.nan)[:, None]
    cut = f"; the {len(kept)} most frequent of {len(totals)} labels" if len(kept) < len(totals) else ""
    names = tuple(str(best.classes[k]) for k in kept)
    title = f"{best.probe} at {best.site}, first seed{cut}"
    return HeatMap(
        title, names, names, shares, "share of the true label's test rows", "true", "predicted", is_share=True
    )


_COLUMN_NAME, _ROW_NAME = 11.0, 14.0  # widths in units of the size of letters
_FONT, _LINE = 11, 13  # pixels
_MOST_NUMBERS = 40  # columns of a heat map beyond which its cells have no numbers


def map_chart(found: HeatMap) -> Chart:
    """Return the chart of a heat map, blue above 0 and orange below, with full colour at `limit`; cells show their
    numbers if there are few columns.
    """
    is_small, limit = len(found.columns) <= _MOST_NUMBERS, found.limit
    is_signed = bool((found.values < 0).any())
    domain, colours = ([-limit, 0, limit], ["#c24e00", "#f7f7f7", "#0072b2"])
    domain, colours = (domain, colours) if is_signed else ([0, limit], ["#f4f8fb", "#0072b2"])
    scale = {"domain": domain, "range": colours, "interpolate": "rgb"}
    rows = [
        {"row": row, "column": column, "value": rounded(value), "ink": ink(colours, domain, value)}
        for i, row in enumerate(found.rows)
        for j, column in enumerate(found.columns)
        if math.isfinite(value := float(found.values[i, j]))
    ]
    names = list(reversed(found.rows)) if found.is_upward else list(found.rows)
    angle = 0 if max(map(len, found.columns)) < 8 else -40
    x_axis = {"labelAngle": angle, "labelLimit": 0, "labelExpr": chosen_line(found.columns, _COLUMN_NAME, 1)}
    y_axis = {"labelLimit": 0, "labelExpr": chosen_line(found.rows, _ROW_NAME)}
    shown = fitted(found.rows, _ROW_NAME)
    height = max(map(len, shown))
    y_axis["minExtent"] = round(_FONT * max(width_of(line) for lines in shown for line in lines)) + 6
    encoding = {
        "x": nominal("column", sort=list(found.columns), title=found.x_label or None, axis=x_axis),
        "y": nominal("row", sort=names, title=found.y_label or None, axis=y_axis),
        "tooltip": [tip("row", found.y_label), tip("column", found.x_label), tip("value", number=True)],
    }
    legend = None if is_small else {"orient": "bottom", "direction": "horizontal", "gradientLength": 160}
    colour = {"field": "value", "type": "quantitative", "title": None, "scale": scale, "legend": legend}
    number = {"field": "value", "type": "quantitative", "format": ".2f"}
    layers = [layer({"type": "rect", "stroke": "#ffffff", "strokeWidth": 0.5}, color=colour)]
    of_text = {"condition": {"test": "datum.ink === '#ffffff'", "value": "#ffffff"}, "value": "#000000"}
    layers += [layer({"type": "text", "fontSize": 9.5}, text=number, color=of_text)] if is_small else []
    return {
        "title": {"text": found.title, "subtitle": found.label},
        "width": (42 if is_small else max(6, 1200 // len(found.columns))) * len(found.columns),
        "height": {"step": max(24, _LINE * height + 4)},
        "data": {"values": rows},
        "encoding": encoding,
        "layer": layers,
    }


def overview_chart(found: Overview, model: str | None = None) -> Chart:
    """Return the chart of properties by sites: the colour shows `found.quantity`, an outline marks decodable
    properties, and a symbol shows the verdict on use.

    Raises:
        BadParameter: there is no result of this model.
    """
    kept = [row for row in found.rows if model in (None, row.model)]
    if not kept:
        raise BadParameter("no result of that model", needed=f"one of: {', '.join(found.models)}", found=str(model))
    sites = sorted({site for row in kept for site in row.sites}, key=site_order)
    order = {site: i for i, site in enumerate(sites)}
    several = len({row.model for row in kept}) > 1
    names = [f"{row.name}, {row.model}" if several else row.name for row in kept]
    step = max(4.5, min(48.0, 880 / max(1, len(order))))
    shown = fitted(names, _NAME)
    # From top to bottom: of each row its name, in lines, and below it its cells.
    tops = [0, *accumulate(_LINE * len(lines) + 2 + _CELL + _GAP for lines in shown)]
    bottoms = [top - _GAP for top in tops[1:]]
    rows = [
        _grid_cell(name, row.anchor, order[cell.site], bottom, cell)
        for name, bottom, row in zip(names, bottoms, kept, strict=True)
        for cell in row.cells
    ]
    most = max([0.1, *(cell.value for row in found.rows for cell in row.cells if cell.value is not None)])
    ticks, label = site_ticks(sites)
    scale = {"domain": [0, len(order)], "nice": False}
    encoding: Chart = {
        "x": {"field": "x", "type": "quantitative", "title": label, "scale": scale, "axis": _cell_axis(ticks, step)},
        "y": {"field": "top", "type": "quantitative", "title": None, "axis": _names_axis(tops[:-1], shown)},
        "tooltip": nominal("hints"),
    }
    encoding["y"]["scale"] = {"domain": [0, bottoms[-1]], "reverse": True, "nice": False, "zero": False}
    if any(row.anchor for row in kept):
        encoding["href"] = nominal("href")
    title = {"title": kept[0].model} if len(found.models) > 1 and not several else {}
    return title | {
        "width": round(step * len(order)),
        "height": bottoms[-1],
        "data": {"values": rows},
        "encoding": encoding,
        "layer": _grid_layers(rows, step, found.quantity, most),
    }


_NAME, _ROOM, _CELL, _GAP = 30.0, 30.0, 26, 8  # widths in units of the size of letters; heights in pixels


def _names_axis(tops: Sequence[float], names: Sequence[Sequence[str]]) -> Chart:
    """Return an axis that has the name of each row above its cells, where a narrow screen has room for it."""
    lines = ",".join("[" + ",".join(map(quoted, name)) + "]" for name in names)
    shown = {"labelExpr": f"[{lines}][indexof({list(tops)},datum.value)]", "labelLimit": 0, "labelOverlap": False}
    place = {"labelAlign": "left", "labelBaseline": "top", "labelPadding": -1, "zindex": 1}
    return {"values": list(tops), "ticks": False, "domain": False, "grid": False} | shown | place


def _grid_cell(name: str, anchor: str, x: int, bottom: float, cell: Cell) -> Row:
    hints = {printable(title): text for title, text in ({"property": name} | cell.hints()).items()}
    place = {"x": x, "x2": x + 1, "top": bottom - _CELL, "middle": bottom - _CELL / 2, "bottom": bottom}
    return {"row": name, "href": f"#{anchor}", "hints": hints} | place | cell.record()


_NO_VALUE = "#d5dadf"  # of a cell whose property no probe was judged by


def _grid_layers(rows: Sequence[Row], step: float, quantity: str, most: float) -> list[Chart]:
    legend = {"orient": "bottom", "direction": "horizontal", "gradientLength": 160, "format": ".2f"}
    scale = {"domain": [0, most], "range": ["#f1f5f8", "#3d93cc"], "clamp": True}
    colour = {"field": "value", "type": "quantitative", "title": quantity, "scale": scale, "legend": legend}
    outline = {"type": "rect", "fillOpacity": 0, "stroke": INK, "strokeWidth": 1.1 if step > 12 else 0.5}
    outline |= {"xOffset": 3, "x2Offset": -3, "yOffset": 3, "y2Offset": -3} if step > 12 else {}
    whole: Chart = {"x2": {"field": "x2"}, "y2": {"field": "bottom"}}
    cell = {"type": "rect", "stroke": "#ffffff", "strokeWidth": min(2.0, step / 10)}
    coloured = layer(cell, where="isValid(datum.value)", color=colour, **whole)
    grey = layer(cell, where="!isValid(datum.value)", color={"value": _NO_VALUE}, **whole)
    layers = [
        *([coloured] if any(row["value"] is not None for row in rows) else []),
        *([grey] if any(row["value"] is None for row in rows) else []),
        layer(outline, where="datum.decodable", **whole),
    ]
    words = dict.fromkeys((row["use"], row["shape"]) for row in rows if row["shape"])
    if not words:
        return layers
    mark = {"type": "point", "strokeWidth": 1.8, "opacity": 1, "xOffset": step / 2}  # in the middle of the cell
    shapes = shape_encodings("use", words, INK, _ROOM, "use")
    middle = {"field": "middle", "type": "quantitative"}
    largest = min(120.0, (step * 0.5) ** 2 * 1.2)
    areas = {"domain": [0, 1], "range": [largest / 8, largest]}
    size = {"field": "share", "type": "quantitative", "scale": areas, "legend": None}
    return [*layers, layer(mark, where="datum.shape != ''", y=middle, size=size, **shapes)]


def _cell_axis(names: Sequence[str], step: float) -> Chart:
    """Return an axis whose names stand in the middle of cells."""
    every = max(1, math.ceil(max(map(len, names), default=1) * 6.5 / step))
    values = [i + 0.5 for i in range(0, len(names), every)]
    quiet = {"grid": False, "ticks": False, "domain": False, "labelOverlap": False}
    return {"values": values, "labelExpr": named(names, "datum.value - 0.5"), **quiet}
