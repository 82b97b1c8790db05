"""Grids as Vega-Lite specifications: heat maps, and the overview of properties by sites."""

from __future__ import annotations

import math
from collections.abc import Sequence

from probing.errors import BadParameter, printable
from probing.reporting.charts import INK, Chart, Row, layer, named, nominal, rounded, shape_encodings, tip
from probing.reporting.colours import ink
from probing.reporting.maps import HeatMap
from probing.reporting.overview import Cell, Overview

_MOST_NUMBERS = 40  # columns of a heat map beyond which its cells have no numbers


def map_chart(found: HeatMap) -> Chart:
    """Return a heat map with its numbers, blue above 0 and orange below, full colour at the largest absolute value."""
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
    encoding = {
        "x": nominal(
            "column",
            sort=list(found.columns),
            title=found.x_label or None,
            axis={"labelAngle": angle, "labelLimit": 140},
        ),
        "y": nominal("row", sort=names, title=found.y_label or None, axis={"labelLimit": 180}),
        "tooltip": [
            tip("row", found.y_label or "row"),
            tip("column", found.x_label or "column"),
            tip("value", number=True),
        ],
    }
    legend = None if is_small else {"orient": "bottom", "direction": "horizontal", "gradientLength": 160}
    colour = {"field": "value", "type": "quantitative", "title": None, "scale": scale, "legend": legend}
    number = {"field": "value", "type": "quantitative", "format": ".2f"}
    layers = [layer({"type": "rect", "stroke": "#ffffff", "strokeWidth": 0.5}, color=colour)]
    of_text = {"condition": {"test": "datum.ink === '#ffffff'", "value": "#ffffff"}, "value": "#000000"}
    layers += [layer({"type": "text", "fontSize": 9.5}, text=number, color=of_text)] if is_small else []
    return {
        "title": {"text": found.title, "subtitle": found.label},
        "width": {"step": 42 if is_small else max(6, 1200 // len(found.columns))},
        "height": {"step": 24},
        "data": {"values": rows},
        "encoding": encoding,
        "layer": layers,
    }


def overview_chart(found: Overview, model: str | None = None) -> Chart:
    """Return the grid of properties and sites: colour is `found.quantity`, an outline says *decodable*, a mark what
    edits showed.

    Raises:
        BadParameter: there is nothing of the model.
    """
    kept = [row for row in found.rows if model in (None, row.model)]
    if not kept:
        raise BadParameter("no result of that model", needed=f"one of: {', '.join(found.models)}", found=str(model))
    order = {site: i for i, site in enumerate(found.site_order(site for row in kept for site in row.sites))}
    several = len({row.model for row in kept}) > 1
    names = [f"{row.name}, {row.model}" if several else row.name for row in kept]
    rows = [
        _grid_cell(name, row.anchor, order[cell.site], cell)
        for name, row in zip(names, kept, strict=True)
        for cell in row.cells
    ]
    step = max(4.5, min(48.0, 880 / max(1, len(order))))
    most = max([0.1, *(cell.value for row in found.rows for cell in row.cells if cell.value is not None)])
    ticks, label = found.ticks(list(order))
    scale = {"domain": [0, len(order)], "nice": False}
    y_axis = {"labelLimit": 230, "domain": False, "ticks": False}
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": label, "scale": scale, "axis": _cell_axis(ticks, step)},
        "y": nominal("row", sort=names, title=None, axis=y_axis),
        "tooltip": nominal("hints"),
    }
    if any(row.anchor for row in kept):
        encoding["href"] = nominal("href")
    title = {"title": kept[0].model} if len(found.models) > 1 and not several else {}
    return title | {
        "width": round(step * len(order)),
        "height": {"step": 32},
        "data": {"values": rows},
        "encoding": encoding,
        "layer": _grid_layers(rows, step, found.quantity, most),
    }


def _grid_cell(name: str, anchor: str, x: int, cell: Cell) -> Row:
    hints = {printable(title): text for title, text in ({"property": name} | cell.hints()).items()}
    return {"row": name, "x": x, "x2": x + 1, "href": f"#{anchor}", "hints": hints} | cell.record()


def _grid_layers(rows: Sequence[Row], step: float, quantity: str, most: float) -> list[Chart]:
    legend = {"orient": "bottom", "direction": "horizontal", "gradientLength": 160, "format": ".2f", "titleLimit": 400}
    scale = {"domain": [0, most], "range": ["#f1f5f8", "#3d93cc"], "clamp": True}
    colour = {"field": "value", "type": "quantitative", "title": quantity, "scale": scale, "legend": legend}
    if all(row["value"] is None for row in rows):
        colour = {"value": "#f1f5f8"}
    outline = {"type": "rect", "fillOpacity": 0, "stroke": INK, "strokeWidth": 1.1 if step > 12 else 0.5}
    outline |= {"xOffset": 3, "x2Offset": -3, "height": {"band": 0.8}} if step > 12 else {}
    layers = [
        layer(
            {"type": "rect", "stroke": "#ffffff", "strokeWidth": min(2.0, step / 10)}, x2={"field": "x2"}, color=colour
        ),
        layer(outline, where="datum.decodable", x2={"field": "x2"}),
    ]
    words = dict.fromkeys((row["use"], row["shape"]) for row in rows if row["shape"])
    if not words:
        return layers
    mark = {"type": "point", "size": min(120.0, (step * 0.5) ** 2 * 1.2), "strokeWidth": 1.8, "opacity": 1}
    mark["xOffset"] = step / 2  # the middle of the cell
    shapes = shape_encodings("use", words, INK, {"orient": "bottom", "columns": 2, "labelLimit": 200}, "use")
    return [*layers, layer(mark, where="datum.shape != ''", **shapes)]


def _cell_axis(names: Sequence[str], step: float) -> Chart:
    """Return an axis whose names stand in the middle of cells."""
    every = max(1, math.ceil(max(map(len, names), default=1) * 6.5 / step))
    values = [i + 0.5 for i in range(0, len(names), every)]
    quiet = {"grid": False, "ticks": False, "domain": False, "labelOverlap": False}
    return {"values": values, "labelExpr": named(names, "datum.value - 0.5"), **quiet}
