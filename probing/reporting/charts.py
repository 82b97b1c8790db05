"""Makes charts as Vega-Lite specifications, which serve notebooks (through Altair), the page and papers.

They are built as plain dictionaries, since objects of Altair copy their data at every step: a page of 200 sites and 30
properties would take minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from probing.errors import printable
from probing.reporting.names import chosen_line, fitted, quoted, width_of
from probing.reporting.panels import Curve, Panel
from probing.reporting.wording import decimal

Chart = dict[str, Any]
Row = dict[str, Any]

# Colours of Okabe & Ito (2008), darkened where needed so that each is clear of a white and of a dark page.
_TASK = ("#0072b2", "#b0578c", "#b87400", "#2a93cf", "#00805c", "#c24e00")
_COLOURS = {  # of curves that are not of the task, by role
    "control": ("#d55e00",),
    "selectivity": ("#008a63",),
    "ceiling": ("#6c757d",),
    "entropy": ("#6c757d",),
    "baseline": ("#6c757d", "#8a6d3b", "#5f7d95", "#7d6c8a"),
}
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
INK, GREY = "#1c2024", "#6c757d"
_WIDTH, _HEIGHT = 290, 190
_MOST_NAMES = 12  # names along an axis
_MOST_DOTS = 60  # sites beyond which a curve has no dots
_ZOOMED = 24  # sites beyond which the x axis can be dragged, and zoomed with the shift key and the wheel
# Room at a width of 390 pixels, in units of the size of letters (see `names.width_of`).
_LEGEND, _SYMBOL, _TICK = 26.0, 2.6, 9.0
_ACROSS = {"x": {"value": 0}, "x2": {"value": "width"}}  # of a level or band


def panel_chart(panel: Panel) -> Chart:
    """Return the chart of one set of axes: curves with intervals, levels, marks of verdicts, and the band of
    equivalence.
    """
    rows = [row for part, curve in enumerate(panel.curves) for row in _points(panel, curve, part)]
    names, (x_names, x_label) = _series(panel), panel.x_ticks()
    low, high = panel.y_range()
    y = {"title": panel.y_label, "type": "quantitative", "scale": {"domain": [low, high], "nice": False, "clamp": True}}
    x = {"field": "x", "type": "quantitative", "title": x_label} | _x_scale(panel, x_names)
    legend = legend_of(list(names)) | {"symbolType": "stroke", "symbolStrokeWidth": 2.5}
    colours, dashes = (list(values) for values in zip(*names.values(), strict=True)) if names else ([], [])
    series = {"field": "series", "type": "nominal", "title": None, "legend": legend}
    colour = series | {"scale": {"domain": list(names), "range": colours}}
    dash = series | {"scale": {"domain": list(names), "range": dashes}}
    faded = {"condition": {"param": "chosen", "value": 1}, "value": 0.12}
    has_interval = "isValid(datum.low) && isValid(datum.high)"
    between = {"y": y | {"field": "low"}, "y2": {"field": "high"}}
    faint = {"condition": {"param": "chosen", "value": 0.18}, "value": 0.03}
    band, bar, line = (
        {"type": kind, "strokeWidth": width} for kind, width in (("area", 0), ("rule", 1.6), ("line", 1.8))
    )
    piece = nominal("piece")
    layers = [
        layer(band, where=f"{has_interval} && !datum.bar", color=colour, detail=piece, opacity=faint, **between),
        layer(bar, where=f"{has_interval} && datum.bar", color=colour, opacity=faded, **between),
        layer(line, color=colour, detail=piece, strokeDash=dash, opacity=faded),
    ]
    for level in panel.levels:
        row = {"series": level.name, "value": rounded(level.points[0].value)}
        shown: Chart = {
            "y": y | {"field": "value"},
            **_ACROSS,
            "color": colour,
            "strokeDash": dash,
            "opacity": faded,
            "tooltip": [tip("series"), tip("value", number=True)],
        }
        layers.append({"data": {"values": [row]}} | layer({"type": "rule", "strokeWidth": 1.4}, **shown))
    if panel.band is not None:
        limits = {"low": max(panel.band[0], low), "high": min(panel.band[1], high)}
        shown = {**_ACROSS, "color": {"value": GREY}, **between}
        layers.insert(0, {"data": {"values": [limits]}} | layer({"type": "rect", "opacity": 0.16}, **shown))
    layers += _marks(rows, len(x_names), colour, faded)
    near: Chart = {"color": colour, "opacity": {"value": 0}}
    hover = [
        layer({"type": "point", "size": 220}, where=where, tooltip=_tips(some, panel), **near)
        for where, is_whole in (("isValid(datum.low)", True), ("!isValid(datum.low)", False))
        if (some := [row for row in rows if (row["low"] is not None) == is_whole])
    ] or [layer({"type": "point"}, **near)]
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


def legend_of(names: Sequence[str], room: float = _LEGEND) -> Chart:
    """Return a legend below the chart, as wide as `room` allows (see `names.width_of`): in two columns if all names are
    short, else one below the other, in lines.
    """
    columns = 2 if all(width_of(name) <= room / 2 - _SYMBOL for name in names) else 1
    lines = chosen_line(names, room / columns - _SYMBOL)
    return {"orient": "bottom", "columns": columns, "labelLimit": 0, "labelExpr": lines}


def layer(mark: Chart, *, where: str = "", **encoding: Any) -> Chart:
    """Return a layer of a chart; `where` is a Vega expression that selects the rows shown ("": all)."""
    kept = {"transform": [{"filter": where}]} if where else {}
    return {"mark": mark, "encoding": encoding, **kept}


def nominal(field: str, **more: Any) -> Chart:
    """Return the encoding of a nominal field, one that holds words."""
    return {"field": field, "type": "nominal", **more}


def _points(panel: Panel, curve: Curve, part: int) -> list[Row]:
    """Return a record for each point; points with the same `piece` are joined."""
    return [
        {
            "series": curve.name,
            "piece": f"{part}.{number}",
            "x": panel.places[point.x] if panel.places else round(point.x + curve.shift, 3),
            "at": panel.sites[point.x],
            "value": rounded(point.value),
            "low": rounded(point.low),
            "high": rounded(point.high),
            "bar": curve.bars or len(piece) == 1,
            "mark": point.note if point.mark else "",
            "shape": point.mark,
            "note": point.note,
        }
        for number, piece in enumerate(panel.runs(curve))
        for point in piece
    ]


def rounded(value: float | None) -> float | None:
    """Return a number rounded to five significant digits; None if it is None or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _series(panel: Panel) -> dict[str, tuple[str, list[int]]]:
    """Return colour and dashes by the name of the curve or level."""
    found: dict[str, tuple[str, list[int]]] = {}
    for curve in (*panel.curves, *panel.levels):
        colours = _COLOURS.get(curve.role, _TASK)
        found[curve.name] = (colours[curve.part % len(colours)], _DASHES.get(curve.role, [1, 0]))
    return found


_FAR = 20  # ratio of the largest number to the smallest from which on an axis is logarithmic


def _x_scale(panel: Panel, names: Sequence[str]) -> Chart:
    """Return scale and axis of x: of names that stand evenly, or of numbers, logarithmic where they lie far apart."""
    if not panel.places:
        scale: Chart = {"domain": [-0.4, max(len(names) - 0.6, 0.4)], "nice": False, "zero": False}
        return {"scale": scale, "axis": _named_axis(names)}
    least = min((place for place in panel.places if place > 0), default=1.0)
    is_far = max(panel.places) >= _FAR * least
    scale = {"type": "symlog", "constant": least} if is_far else {"zero": False}
    axis = {
        "values": list(panel.places),
        "format": "~s" if all(float(place).is_integer() for place in panel.places) else "~g",
        "labelOverlap": True,
        "grid": False,
    }
    ends = [min(panel.places), max(panel.places)]  # given, since a layer without rows has no extent of its own
    return {"scale": scale | {"domain": ends, "nice": False, "padding": 12}, "axis": axis}


def _named_axis(names: Sequence[str]) -> Chart:
    """Return an axis of ordinals that shows names, as many as there is room for."""
    shown = [lines[0] for lines in fitted(names, _TICK, 1)]
    longest = max(map(len, shown), default=1)
    every = max(1, -(-len(names) // _MOST_NAMES), -(-len(names) * longest // 48))
    return {
        "values": list(range(0, len(names), every)),
        "labelExpr": named(shown, "datum.value"),
        "grid": False,
        "labelLimit": 0,
    }


def named(names: Sequence[str], index: str) -> str:
    """Return a Vega expression that gives the name with the number `index`."""
    return "[" + ",".join(quoted(name) for name in names) + f"][{index}]"


def _marks(rows: Sequence[Row], sites: int, colour: Chart, faded: Chart) -> list[Chart]:
    """Return the layers of points: small discs where there are few sites, and shapes of verdicts."""
    small = {"type": "point", "size": 16, "filled": True}
    dots = layer(small, where="datum.mark == ''", color=colour, opacity=faded)
    words = dict.fromkeys((row["mark"], row["shape"]) for row in rows if row["mark"])
    shapes = shape_encodings("mark", words, GREY, _LEGEND, None) if words else {}
    marked = layer(
        {"type": "point", "size": 70, "strokeWidth": 1.9, "opacity": 1},
        where="datum.mark != ''",
        opacity=faded,
        **shapes,
    )
    return [*([dots] if sites <= _MOST_DOTS else []), *([marked] if words else [])]


def shape_encodings(field: str, words: Iterable[tuple[str, str]], ink: str, room: float, title: str | None) -> Chart:
    """Return the encodings of verdicts as filled or open shapes, with one legend of the width `room`; `words` are pairs
    (verdict, shape).
    """
    names, shapes = zip(*words, strict=True)
    scale = {"domain": list(names)}
    shown = nominal(field, title=title, legend=legend_of(names, room) | {"symbolStrokeWidth": 1.8})
    return {
        "shape": shown | {"scale": scale | {"range": [_SHAPES[shape] for shape in shapes]}},
        "fill": shown | {"scale": scale | {"range": ["transparent" if shape in _OPEN else ink for shape in shapes]}},
        "stroke": shown | {"scale": scale | {"range": [ink for _ in shapes]}},
    }


def tip(field: str, title: str = "", *, number: bool = False) -> Chart:
    """Return the encoding of one line of a tooltip."""
    shown = {"type": "quantitative", "format": ".3f"} if number else {"type": "nominal"}
    return {"field": field, "title": printable(title or field), **shown}


def _tips(rows: Sequence[Row], panel: Panel) -> list[Chart]:
    tips = [tip("at", "at" if panel.x_label else "site"), tip("series", " "), tip("value", number=True)]
    if any(row["low"] is not None for row in rows):
        tips += [tip("low", "95 % low", number=True), tip("high", "95 % high", number=True)]
    return [*tips, *([tip("note")] if any(row["note"] for row in rows) else [])]


def described(panels: Sequence[Panel]) -> str:
    """Return a description of charts for readers who cannot see them: the first and last value of each curve."""
    return ". ".join(f"{panel.title}: {'; '.join(_ends(panel, curve) for curve in panel.curves)}" for panel in panels)


def _ends(panel: Panel, curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    to = f" to {decimal(last.value)} at {panel.sites[last.x]}" if len(curve.points) > 1 else ""
    return f"{curve.name} {decimal(first.value)} at {panel.sites[first.x]}{to}"


_DARK, _LIGHT = "#000000", "#ffffff"  # of which one has a contrast of 4.5 or more on any colour


def ink(scale: Sequence[str], domain: Sequence[float], value: float) -> str:
    """Return black or white, whichever has more contrast to the colour of a value. This colour is interpolated linearly
    between the colours of `scale` at the numbers of `domain`.
    """
    place = next((i for i in range(1, len(domain) - 1) if value <= domain[i]), len(domain) - 1)
    low, high = domain[place - 1], domain[place]
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    below, above = _parts(scale[place - 1]), _parts(scale[place])
    light = _luminance([(1 - share) * a + share * b for a, b in zip(below, above, strict=True)])
    return _DARK if (light + 0.05) ** 2 > 1.05 * 0.05 else _LIGHT


def _parts(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _luminance(parts: Sequence[float]) -> float:
    """Return the relative luminance as WCAG 2.2 defines it."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
