"""Charts as Vega-Lite specifications: drawn once, for notebooks (by Altair), the page and papers alike.

They are built as plain records, since Altair's own objects copy their data at every step: a page of 200 sites and 30
properties would take minutes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from probing.errors import BadParameter, printable
from probing.files.whole_files import write_atomically
from probing.reporting.colours import ink
from probing.reporting.maps import HeatMap
from probing.reporting.overview import Cell, Overview
from probing.reporting.panels import Curve, Panel
from probing.reporting.wording import decimal
from probing.system.machine import with_typed_errors

Chart = dict[str, Any]
Row = dict[str, Any]

# Colours of Okabe & Ito (2008), darkened where needed so that each is clear of a white and of a dark page.
_TASK = ("#0072b2", "#b0578c", "#b87400", "#2a93cf", "#00805c", "#c24e00")
_ROLES = {"control": "#d55e00", "selectivity": "#008a63", "ceiling": "#6c757d", "entropy": "#6c757d"}
_BASELINES = ("#6c757d", "#8a6d3b", "#5f7d95", "#7d6c8a")
_DASHES = {"ceiling": [7, 3], "baseline": [2, 3], "entropy": [8, 2, 2, 2], "other": [5, 3]}
_SHAPES = {
    "disc": "circle",
    "diamond": "diamond",
    "square": "square",
    "triangle": "triangle-up",
    "ring": "circle",
    "cross": "M-.7,-.7L.7,.7M-.7,.7L.7,-.7",
    "dash": "M-.8,0L.8,0",
}
_OPEN = ("square", "triangle", "ring", "cross", "dash")
_INK, _GREY = "#1c2024", "#6c757d"
_WIDTH, _HEIGHT = 290, 190
_MOST_NAMES = 12  # names along an axis
_MOST_DOTS = 60  # sites beyond which a curve has no dots
_MOST_NUMBERS = 40  # columns of a heat map beyond which its cells have no numbers
_ZOOMED = 24  # sites beyond which the x axis can be dragged, and zoomed with the shift key and the wheel
_ACROSS = {"x": {"value": 0}, "x2": {"value": "width"}}  # of a level or band
_CONFIG: Chart = {
    "font": "system-ui, Segoe UI, Helvetica, Arial, sans-serif",
    "background": "transparent",
    "aria": False,
    "view": {"stroke": None},
    "axis": {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "gridOpacity": 0.6},
    "title": {
        "fontSize": 12.5,
        "fontWeight": 600,
        "subtitleFontSize": 11,
        "anchor": "start",
        "frame": "group",
        "limit": 460,
    },
    "legend": {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titleLimit": 300,
        "symbolOpacity": 1,
    },
}
_STACKED = {"layout": {"bottom": {"direction": "vertical"}}}  # of legends: Vega knows it, Altair's schema does not


def panel_chart(panel: Panel) -> Chart:
    """Return the chart of one set of axes: curves with intervals, levels, marks of verdicts, and the band of
    equivalence.
    """
    rows = [row for part, curve in enumerate(panel.curves) for row in _points(panel, curve, part)]
    names, (x_names, x_label) = _series(panel), panel.x_ticks()
    low, high = panel.y_range()
    y = {"title": panel.y_label, "type": "quantitative", "scale": {"domain": [low, high], "nice": False, "clamp": True}}
    x_scale = {"domain": [-0.4, max(len(x_names) - 0.6, 0.4)], "nice": False, "zero": False}
    x = {"field": "x", "type": "quantitative", "title": x_label, "scale": x_scale, "axis": _named_axis(x_names)}
    legend = {"orient": "bottom", "columns": 2, "labelLimit": 150, "symbolType": "stroke", "symbolStrokeWidth": 2.5}
    colours, dashes = (list(values) for values in zip(*names.values(), strict=True)) if names else ([], [])
    series = {"field": "series", "type": "nominal", "title": None, "legend": legend}
    colour = series | {"scale": {"domain": list(names), "range": colours}}
    dash = series | {"scale": {"domain": list(names), "range": dashes}}
    faded = {"condition": {"param": "chosen", "value": 1}, "value": 0.12}
    has_interval = "isValid(datum.low) && isValid(datum.high)"
    between = {"y": y | {"field": "low"}, "y2": {"field": "high"}}
    faint = {"condition": {"param": "chosen", "value": 0.18}, "value": 0.03}
    layers = [
        _layer(
            {"type": "area", "strokeWidth": 0},
            where=f"{has_interval} && !datum.bar",
            color=colour,
            detail=_nominal("piece"),
            opacity=faint,
            **between,
        ),
        _layer(
            {"type": "rule", "strokeWidth": 1.6},
            where=f"{has_interval} && datum.bar",
            color=colour,
            opacity=faded,
            **between,
        ),
        _layer(
            {"type": "line", "strokeWidth": 1.8},
            color=colour,
            detail=_nominal("piece"),
            strokeDash=dash,
            opacity=faded,
        ),
    ]
    for level in panel.levels:
        row = {"series": level.name, "value": _short(level.points[0].value)}
        shown: Chart = {
            "y": y | {"field": "value"},
            **_ACROSS,
            "color": colour,
            "strokeDash": dash,
            "opacity": faded,
            "tooltip": [_tip("series"), _tip("value", number=True)],
        }
        layers.append({"data": {"values": [row]}} | _layer({"type": "rule", "strokeWidth": 1.4}, **shown))
    if panel.band is not None:
        limits = {"low": max(panel.band[0], low), "high": min(panel.band[1], high)}
        shown = {**_ACROSS, "color": {"value": _GREY}, **between}
        layers.insert(0, {"data": {"values": [limits]}} | _layer({"type": "rect", "opacity": 0.16}, **shown))
    layers += _marks(rows, len(x_names), colour, faded)
    near: Chart = {"color": colour, "opacity": {"value": 0}}
    hover = [
        _layer({"type": "point", "size": 220}, where=where, tooltip=_tips(some, panel), **near)
        for where, is_whole in (("isValid(datum.low)", True), ("!isValid(datum.low)", False))
        if (some := [row for row in rows if (row["low"] is not None) == is_whole])
    ] or [_layer({"type": "point"}, **near)]
    params: list[Chart] = [{"name": "chosen", "select": {"type": "point", "fields": ["series"]}, "bind": "legend"}]
    if len(x_names) > _ZOOMED:
        select = {"type": "interval", "encodings": ["x"], "zoom": "wheel![event.shiftKey]"}
        params.append({"name": "zoom", "select": select, "bind": "scales"})
    return {
        "title": panel.title,
        "width": _WIDTH,
        "height": _HEIGHT,
        "data": {"values": rows},
        "encoding": {"x": x, "y": y | {"field": "value"}},
        "layer": [*layers, hover[0] | {"params": params}, *hover[1:]],
    }


def _layer(mark: Chart, *, where: str = "", **encoding: Any) -> Chart:
    """Return a layer; `where` keeps the rows for which the expression holds."""
    kept = {"transform": [{"filter": where}]} if where else {}
    return {"mark": mark, "encoding": encoding, **kept}


def _nominal(field: str, **more: Any) -> Chart:
    return {"field": field, "type": "nominal", **more}


def _points(panel: Panel, curve: Curve, part: int) -> list[Row]:
    """Return a record for each point; points with the same `piece` are joined."""
    return [
        {
            "series": curve.name,
            "piece": f"{part}.{number}",
            "x": round(point.x + curve.shift, 3),
            "at": panel.sites[point.x],
            "value": _short(point.value),
            "low": _short(point.low),
            "high": _short(point.high),
            "bar": curve.bars or len(piece) == 1,
            "mark": point.note if point.mark else "",
            "shape": point.mark,
            "note": point.note,
        }
        for number, piece in enumerate(panel.runs(curve))
        for point in piece
    ]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _series(panel: Panel) -> dict[str, tuple[str, list[int]]]:
    """Return colour and dashes by the name of the curve or level."""
    found: dict[str, tuple[str, list[int]]] = {}
    for curve in (*panel.curves, *panel.levels):
        colours = {"baseline": _BASELINES}.get(
            curve.role, _TASK if curve.role in ("task", "other") else (_ROLES.get(curve.role, _GREY),)
        )
        found[curve.name] = (colours[curve.part % len(colours)], _DASHES.get(curve.role, [1, 0]))
    return found


def _named_axis(names: Sequence[str]) -> Chart:
    """Return an axis of ordinals that shows names, as many as there is room for."""
    longest = max(map(len, names), default=1)
    every = max(1, -(-len(names) // _MOST_NAMES), -(-len(names) * longest // 48))
    return {
        "values": list(range(0, len(names), every)),
        "labelExpr": _named(names, "datum.value"),
        "grid": False,
        "labelLimit": 90,
    }


def _named(names: Sequence[str], index: str) -> str:
    """Return an expression that gives the name of an ordinal."""
    return "[" + ",".join(_quoted(name) for name in names) + f"][{index}]"


def _quoted(text: str) -> str:
    """Return the text as a string of a Vega expression."""
    return "'" + printable(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _marks(rows: Sequence[Row], sites: int, colour: Chart, faded: Chart) -> list[Chart]:
    """Return the layers of points: small discs where there are few sites, and shapes of verdicts."""
    small = {"type": "point", "size": 16, "filled": True}
    dots = _layer(small, where="datum.mark == ''", color=colour, opacity=faded)
    words = dict.fromkeys((row["mark"], row["shape"]) for row in rows if row["mark"])
    shapes = _shapes("mark", words, _GREY, {"orient": "bottom", "columns": 2, "labelLimit": 210}, None) if words else {}
    marked = _layer(
        {"type": "point", "size": 70, "strokeWidth": 1.9, "opacity": 1},
        where="datum.mark != ''",
        opacity=faded,
        **shapes,
    )
    return [*([dots] if sites <= _MOST_DOTS else []), *([marked] if words else [])]


def _shapes(field: str, words: Iterable[tuple[str, str]], ink: str, legend: Chart, title: str | None) -> Chart:
    """Return the encodings of verdicts: a shape each, filled or open, with one legend."""
    names, shapes = zip(*words, strict=True)
    scale = {"domain": list(names)}
    shown = _nominal(field, title=title, legend=legend | {"symbolStrokeWidth": 1.8})
    return {
        "shape": shown | {"scale": scale | {"range": [_SHAPES[shape] for shape in shapes]}},
        "fill": shown | {"scale": scale | {"range": ["transparent" if shape in _OPEN else ink for shape in shapes]}},
        "stroke": shown | {"scale": scale | {"range": [ink for _ in shapes]}},
    }


def _tip(field: str, title: str = "", *, number: bool = False) -> Chart:
    shown = {"type": "quantitative", "format": ".3f"} if number else {"type": "nominal"}
    return {"field": field, "title": printable(title or field), **shown}


def _tips(rows: Sequence[Row], panel: Panel) -> list[Chart]:
    tips = [_tip("at", "at" if panel.x_label else "site"), _tip("series", " "), _tip("value", number=True)]
    if any(row["low"] is not None for row in rows):
        tips += [_tip("low", "95 % low", number=True), _tip("high", "95 % high", number=True)]
    return [*tips, *([_tip("note")] if any(row["note"] for row in rows) else [])]


def map_chart(found: HeatMap) -> Chart:
    """Return a heat map with its numbers, blue above 0 and orange below, full colour at the largest absolute value."""
    is_small, limit = len(found.columns) <= _MOST_NUMBERS, found.limit
    is_signed = bool((found.values < 0).any())
    domain, colours = ([-limit, 0, limit], ["#c24e00", "#f7f7f7", "#0072b2"])
    domain, colours = (domain, colours) if is_signed else ([0, limit], ["#f4f8fb", "#0072b2"])
    scale = {"domain": domain, "range": colours, "interpolate": "rgb"}
    rows = [
        {"row": row, "column": column, "value": _short(value), "ink": ink(colours, domain, value)}
        for i, row in enumerate(found.rows)
        for j, column in enumerate(found.columns)
        if math.isfinite(value := float(found.values[i, j]))
    ]
    names = list(reversed(found.rows)) if found.is_upward else list(found.rows)
    angle = 0 if max(map(len, found.columns)) < 8 else -40
    encoding = {
        "x": _nominal(
            "column",
            sort=list(found.columns),
            title=found.x_label or None,
            axis={"labelAngle": angle, "labelLimit": 140},
        ),
        "y": _nominal("row", sort=names, title=found.y_label or None, axis={"labelLimit": 180}),
        "tooltip": [
            _tip("row", found.y_label or "row"),
            _tip("column", found.x_label or "column"),
            _tip("value", number=True),
        ],
    }
    legend = None if is_small else {"orient": "bottom", "direction": "horizontal", "gradientLength": 160}
    colour = {"field": "value", "type": "quantitative", "title": None, "scale": scale, "legend": legend}
    number = {"field": "value", "type": "quantitative", "format": ".2f"}
    layers = [_layer({"type": "rect", "stroke": "#ffffff", "strokeWidth": 0.5}, color=colour)]
    of_text = {"condition": {"test": "datum.ink === '#ffffff'", "value": "#ffffff"}, "value": "#000000"}
    layers += [_layer({"type": "text", "fontSize": 9.5}, text=number, color=of_text)] if is_small else []
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
        "y": _nominal("row", sort=names, title=None, axis=y_axis),
        "tooltip": _nominal("hints"),
    }
    if any(row.anchor for row in kept):
        encoding["href"] = _nominal("href")
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
    outline = {"type": "rect", "fillOpacity": 0, "stroke": _INK, "strokeWidth": 1.1 if step > 12 else 0.5}
    outline |= {"xOffset": 3, "x2Offset": -3, "height": {"band": 0.8}} if step > 12 else {}
    layers = [
        _layer(
            {"type": "rect", "stroke": "#ffffff", "strokeWidth": min(2.0, step / 10)}, x2={"field": "x2"}, color=colour
        ),
        _layer(outline, where="datum.decodable", x2={"field": "x2"}),
    ]
    words = dict.fromkeys((row["use"], row["shape"]) for row in rows if row["shape"])
    if not words:
        return layers
    mark = {"type": "point", "size": min(120.0, (step * 0.5) ** 2 * 1.2), "strokeWidth": 1.8, "opacity": 1}
    mark["xOffset"] = step / 2  # the middle of the cell
    shapes = _shapes("use", words, _INK, {"orient": "bottom", "columns": 2, "labelLimit": 200}, "use")
    return [*layers, _layer(mark, where="datum.shape != ''", **shapes)]


def _cell_axis(names: Sequence[str], step: float) -> Chart:
    """Return an axis whose names stand in the middle of cells."""
    every = max(1, math.ceil(max(map(len, names), default=1) * 6.5 / step))
    values = [i + 0.5 for i in range(0, len(names), every)]
    quiet = {"grid": False, "ticks": False, "domain": False, "labelOverlap": False}
    return {"values": values, "labelExpr": _named(names, "datum.value - 0.5"), **quiet}


def together(charts: Sequence[Chart], title: str = "") -> Chart:
    """Return the charts side by side, three in a row, as one.

    Raises:
        BadParameter: there is none.
    """
    if not charts:
        raise BadParameter("nothing to draw", needed="a result with numbers", found="none")
    if len(charts) == 1:
        return charts[0]
    channels = ("color", "shape", "fill", "stroke", "strokeDash", "x", "y")
    own = {"resolve": {"scale": dict.fromkeys(channels, "independent")}}
    named = [_renamed(chart, str(number)) for number, chart in enumerate(charts)]
    return {"concat": named, "columns": 3, **own, **({"title": title} if title else {})}


def _renamed(value: Any, mark: str) -> Any:
    """Return a chart whose parameters have names of their own among several."""
    if isinstance(value, dict):
        names = {key: f"{value[key]}_{mark}" for key in ("param",) if key in value}
        if "select" in value:
            names["name"] = f"{value['name']}_{mark}"
        rest = {
            key: item if key == "values" else _renamed(item, mark) for key, item in value.items() if key not in names
        }
        return rest | names
    return [_renamed(item, mark) for item in value] if isinstance(value, list) else value


def spec(chart: Chart, *, is_drawn_here: bool = True) -> Chart:
    """Return the whole Vega-Lite specification of a chart, with its theme; texts have no characters that turn or hide
    text. Where Altair draws it, legends are not stacked.
    """
    schema = "https://vega.github.io/schema/vega-lite/v6.json"
    config = _CONFIG | {"legend": _CONFIG["legend"] | (_STACKED if is_drawn_here else {})}
    whole: Chart = _shown({"$schema": schema, "config": config} | chart)
    return whole


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list | tuple) else value


def altair_chart(chart: Chart) -> Any:
    """Return the chart as an object of Altair, which `.save("x.pdf")` writes.

    A notebook shows it without a network: as Vega-Lite where it can draw that, else as SVG. A renderer that was enabled
    in Altair (`altair.renderers.enable("html")`) is used instead.
    """
    import altair

    made: Any = altair.Chart.from_dict(spec(chart, is_drawn_here=False))
    object.__setattr__(made, "__class__", _drawn_offline(made.__class__))
    return made


@cache
def _drawn_offline(kind: Any) -> Any:
    """Return a kind of Altair's charts whose default way to be shown needs no script from elsewhere."""
    import altair

    def shown(self: Any, *options: Any, **more: Any) -> Any:
        if altair.renderers.active != "default":
            return kind._repr_mimebundle_(self, *options, **more)
        told = self.to_dict()
        return {"application/vnd.vegalite.v6+json": told, "image/svg+xml": svg(told), "text/plain": repr(self)}

    return type(kind.__name__, (kind,), {"_repr_mimebundle_": shown, "__module__": kind.__module__})


def svg(specification: Mapping[str, Any], name: str = "chart") -> str:
    """Return the drawing as SVG text, coordinates rounded to a tenth of a pixel; its ids begin with `name`, since the
    library counts them over all drawings of a process.
    """
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(dict(specification))
    ids = {old: f"{name}-{i}" for i, old in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', drawn)))}
    for old, new in ids.items():
        drawn = drawn.replace(f'id="{old}"', f'id="{new}"').replace(f"url(#{old})", f"url(#{new})")
    drawn = re.sub(r'(href=")[^"#]+#', r"\1#", drawn)  # the library takes links as of its own site
    return re.sub(r"<[^<>]*>", lambda tag: re.sub(r"(\d+\.\d)\d+", r"\1", tag[0]), drawn)  # not in what is read


@with_typed_errors
def save(chart: Chart, stem: Path) -> list[Path]:
    """Save a chart as SVG and PDF, both whole or not at all. Equal charts give equal SVG; a PDF, whose bytes differ
    from one writing to the next, is written where the SVG is new.

    Args:
        chart: to draw.
        stem: path without its ending.
    """
    import vl_convert

    drawn = svg(spec(chart) | {"background": "white"})
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "pdf")]
    if all(path.is_file() for path in paths) and paths[0].read_bytes() == drawn.encode():
        return paths
    printed = vl_convert.svg_to_pdf(drawn)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path, data in zip(paths, (drawn.encode(), printed), strict=True):
        write_atomically(path, data)
    return paths


def file_name(title: str) -> str:
    """Return a title as part of a file name: letters, digits, dots and dashes; a hash where characters were lost."""
    kept = re.sub(r"[^A-Za-z0-9._]+", "-", title).strip("-.")[:60]
    marked = kept if kept == title else f"{kept}-{hashlib.sha256(title.encode('utf-8', 'replace')).hexdigest()[:6]}"
    return marked.strip("-")


def described(panels: Sequence[Panel]) -> str:
    """Return what charts show, in words, for those who do not see them: each curve's first and last value."""
    return ". ".join(f"{panel.title}: {'; '.join(_ends(panel, curve) for curve in panel.curves)}" for panel in panels)


def _ends(panel: Panel, curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    to = f" to {decimal(last.value)} at {panel.sites[last.x]}" if len(curve.points) > 1 else ""
    return f"{curve.name} {decimal(first.value)} at {panel.sites[first.x]}{to}"
