"""A line chart as inline SVG in the page's colours, and panels of several charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from probing.reporting.curves import Curve, Panel, Point
from probing.reporting.markup import Markup, el, join
from probing.reporting.wording import decimal

WIDTH, HEIGHT = 580, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 170, 34, 46
LINE = 13.0
_CHARACTER, _BOLD = 6.3, 7.0


def draw(panel: Panel, description: str) -> Markup:
    """Return one panel as an `svg` element; screen readers read `description` instead of it."""
    axes = _Axes(panel)
    labels = [label for curve in panel.curves for label in _curve_labels(axes, curve)]
    labels += [(axes.y(level.points[0].value), level) for level in panel.levels]
    return el(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": description, "class": "chart"},
        el("text", {"class": "title", "x": LEFT, "y": 16}, _fitted(panel.title, WIDTH - LEFT)),
        _shaded(axes, panel.band),
        axes.drawn(),
        *(_level(axes, level) for level in panel.levels),
        *(_curve(axes, panel, curve) for curve in panel.curves),
        *_spread_labels(labels),
    )


class _Axes:
    """Places sites and values in the drawing."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.low, self.high = panel.y_range()
        self.right = WIDTH - RIGHT
        self.bottom = HEIGHT - BOTTOM

    def x(self, site: float) -> float:
        """Return the x of the site with this ordinal, or of a place between two sites."""
        steps = len(self.panel.sites) - 1
        inset = 10
        if not steps:
            return (LEFT + self.right) / 2
        return LEFT + inset + site * (self.right - LEFT - 2 * inset) / steps

    def y(self, value: float) -> float:
        """Return the y of a value, held within the axes."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.bottom - share * (self.bottom - TOP)

    def drawn(self) -> Markup:
        """Return the grid, ticks and labels."""
        names, title = self.panel.x_ticks()
        middle = _number((LEFT + self.right) / 2)
        return join(
            [
                *(self._value_tick(value, step) for value, step in _ticks(self.low, self.high)),
                el("line", {"class": "axis", "x1": LEFT, "x2": self.right, "y1": self.bottom, "y2": self.bottom}),
                *(self._site_tick(x, names[x]) for x in _shown_ticks(names, self.right - LEFT)),
                el("text", {"class": "label", "x": middle, "y": HEIGHT - 8, "text-anchor": "middle"}, title),
                el(
                    "text",
                    {
                        "class": "label",
                        "x": 12,
                        "y": 0,
                        "text-anchor": "middle",
                        "transform": f"translate(0 {_number((TOP + self.bottom) / 2)}) rotate(-90 12 0)",
                    },
                    self.panel.y_label,
                ),
            ]
        )

    def _value_tick(self, value: float, step: float) -> Markup:
        y = _number(self.y(value))
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        label = el(
            "text",
            {"class": "tick", "x": LEFT - 6, "y": _number(self.y(value) + 4), "text-anchor": "end"},
            f"{value / 1000:g}k" if step >= 1000 else decimal(value, places),
        )
        return join([el("line", {"class": "grid", "x1": LEFT, "x2": self.right, "y1": y, "y2": y}), label])

    def _site_tick(self, site: int, name: str) -> Markup:
        x = _number(self.x(site))
        tick = el("line", {"class": "axis", "x1": x, "x2": x, "y1": self.bottom, "y2": self.bottom + 4})
        label = el("text", {"class": "tick", "x": x, "y": self.bottom + 17, "text-anchor": "middle"}, name)
        return join([tick, label])


def _curve(axes: _Axes, panel: Panel, curve: Curve) -> Markup:
    css = _css(curve)
    parts: list[Markup] = []
    for run in panel.runs(curve):
        parts += [_band(axes, [p], curve.shift) for p in run] if curve.bars else [_band(axes, run)]
        if len(run) > 1:
            ends = " L".join(f"{_number(axes.x(p.x + curve.shift))} {_number(axes.y(p.value))}" for p in run)
            parts.append(el("path", {"class": "line", "d": f"M{ends}"}))
    if curve.role != "ceiling" or len(curve.points) == 1:
        parts += [_marker(axes, panel, curve, point) for point in curve.points]
    return el("g", {"class": css}, *parts)


def _shaded(axes: _Axes, band: tuple[float, float] | None) -> Markup:
    """Return a band over values of no interest, across the whole drawing."""
    if band is None:
        return Markup("")
    low, high = axes.y(band[0]), axes.y(band[1])
    size = {"width": axes.right - LEFT, "height": _number(low - high)}
    hint = el("title", None, f"from {decimal(band[0])} to {decimal(band[1])}")
    return el("rect", {"class": "within", "x": LEFT, "y": _number(high), **size}, hint)


def _band(axes: _Axes, run: Sequence[Point], shift: float = 0.0) -> Markup:
    """Return the interval as an area, or as a bar where the run has one point."""
    bounded = [
        (axes.x(p.x + shift), axes.y(p.low), axes.y(p.high)) for p in run if p.low is not None and p.high is not None
    ]
    if not bounded:
        return Markup("")
    if len(bounded) == 1:
        x, low, high = bounded[0]
        return el("path", {"class": "bar", "d": f"M{_number(x)} {_number(low)} V{_number(high)}"})
    upper = [f"{_number(x)} {_number(high)}" for x, _, high in bounded]
    lower = [f"{_number(x)} {_number(low)}" for x, low, _ in reversed(bounded)]
    return el("path", {"class": "band", "d": f"M{' L'.join(upper + lower)} Z"})


def _marker(axes: _Axes, panel: Panel, curve: Curve, point: Point) -> Markup:
    within = "" if point.low is None or point.high is None else f" [{decimal(point.low)}, {decimal(point.high)}]"
    note = f": {point.note}" if point.note else ""
    hint = el("title", None, f"{panel.sites[point.x]}: {curve.name} {decimal(point.value)}{within}{note}")
    x, y = axes.x(point.x + curve.shift), axes.y(point.value)
    if point.mark:
        return mark(point.mark, x, y, hint)
    radius = 3.5 if len(panel.sites) <= 20 else 2.2
    shape = {"control": "square", "selectivity": "diamond"}.get(curve.role, "circle")
    if shape == "circle":
        return el("circle", {"class": "dot", "cx": _number(x), "cy": _number(y), "r": radius}, hint)
    return _square(x, y, 2 * radius - 0.5, "dot", 45 if shape == "diamond" else 0, hint)


def _square(x: float, y: float, side: float, css: str, turned_by: int, hint: Markup) -> Markup:
    turned = f"rotate({turned_by} {_number(x)} {_number(y)})" if turned_by else ""
    place = {"x": _number(x - side / 2), "y": _number(y - side / 2), "width": side, "height": side}
    return el("rect", {"class": css, **place, "transform": turned}, hint)


def mark(shape: str, x: float, y: float, hint: Markup) -> Markup:
    """Return a shape that can be recognised without colours: disc, diamond, square, ring, triangle, cross or dash."""
    if shape in ("disc", "ring"):
        css = "dot" if shape == "disc" else "open"
        return el("circle", {"class": css, "cx": _number(x), "cy": _number(y), "r": 4.5}, hint)
    if shape in ("diamond", "square"):
        filled = shape == "diamond"
        return _square(x, y, 7.5, "dot" if filled else "open", 45 if filled else 0, hint)
    if shape == "triangle":
        outline = f"M{_number(x - 4.5)} {_number(y + 4)} h9 l-4.5 -8 Z"
        return el("path", {"class": "open", "d": outline}, hint)
    arms = f"M{_number(x - 4)} {_number(y)} H{_number(x + 4)}"
    if shape == "cross":
        arms = f"M{_number(x - 4)} {_number(y - 4)} l8 8 M{_number(x - 4)} {_number(y + 4)} l8 -8"
    return el("path", {"class": "stroke", "d": arms}, hint)


def _level(axes: _Axes, level: Curve) -> Markup:
    y = _number(axes.y(level.points[0].value))
    hint = el("title", None, f"{level.name} {decimal(level.points[0].value)}")
    return el(
        "g", {"class": _css(level)}, el("line", {"class": "line", "x1": LEFT, "x2": axes.right, "y1": y, "y2": y}, hint)
    )


def _curve_labels(axes: _Axes, curve: Curve) -> list[tuple[float, Curve]]:
    return [(axes.y(curve.points[-1].value), curve)] if curve.points else []


def _spread_labels(labels: Sequence[tuple[float, Curve]]) -> list[Markup]:
    """Return names at the right of their lines, moved apart where they would touch."""
    ordered = sorted(labels, key=lambda label: label[0])
    places = _apart([y for y, _ in ordered])
    return [_name(curve, wanted, place) for (wanted, curve), place in zip(ordered, places, strict=True)]


def _name(curve: Curve, wanted: float, place: float) -> Markup:
    x = WIDTH - RIGHT
    key = el("path", {"class": "line", "d": f"M{x + 2} {_number(wanted)} L{x + 14} {_number(place)} H{x + 24}"})
    shown = curve.name if curve.role in ("task", "other", "control", "selectivity") else f"{curve.name} {_value(curve)}"
    text = el("text", {"class": "name", "x": x + 28, "y": _number(place + 4)}, _fitted(shown, RIGHT - 28, _BOLD))
    return el("g", {"class": _css(curve)}, key, text)


def _value(curve: Curve) -> str:
    values = {decimal(point.value) for point in curve.points}
    return values.pop() if len(values) == 1 else ""


def _apart(wanted: Sequence[float]) -> list[float]:
    """Return places at least a line apart, in order, near the wanted ones and within the drawing."""
    places: list[float] = []
    for y in wanted:
        places.append(max(y, places[-1] + LINE) if places else y)
    floor = HEIGHT - BOTTOM + 8.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], floor)
        floor = places[i] - LINE
    return places


def _css(curve: Curve) -> str:
    return f"{curve.role} p{curve.part % 6}" if curve.role in ("task", "other", "baseline") else curve.role


def _fitted(text: str, width: float, character: float = _CHARACTER) -> str:
    most = int(width / character)
    return text if len(text) <= most else text[: most - 1] + "…"


def _ticks(low: float, high: float) -> list[tuple[float, float]]:
    """Return about five round values in the range, each with the step between them."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((f * power for f in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, step) for i in range(first, last + 1)]


def _shown_ticks(names: Sequence[str], width: float) -> list[int]:
    """Return the ordinals whose names fit side by side: every ordinal, or every second, third, …"""
    gap = (max(map(len, names)) + 1.5) * _CHARACTER
    numbers = [i for i, name in enumerate(names) if name.isdigit()]
    if len(numbers) >= 3 and len(names) > 1:
        gap = (max(len(names[i]) for i in numbers) + 1.5) * _CHARACTER
    every = max(1, math.ceil(gap * len(names) / width))
    shown = [i for i in numbers if not int(names[i]) % every] if numbers else list(range(0, len(names), every))
    return _with_ends(names, shown, width)


def _with_ends(names: Sequence[str], shown: list[int], width: float) -> list[int]:
    """Keep the first and the last name, and drop those that would touch a longer one before or after."""
    step = width / max(1, len(names) - 1)
    ends = sorted({0, len(names) - 1})
    kept: list[int] = []
    for i in sorted({*shown, *ends}):
        room = [
            (len(names[i]) + len(names[j])) / 2 * _CHARACTER + 5 <= abs(i - j) * step for j in {*kept[-1:], *ends} - {i}
        ]
        if i in ends or all(room):
            kept.append(i)
    return kept


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def figure(panels: Sequence[Panel], title: str, caption: str) -> Markup:
    """Return the panels as a `figure` element, empty if there are none; `title` describes it to readers who cannot see
    it.
    """
    if not panels:
        return Markup("")
    drawn = (draw(panel, _described(panel, title)) for panel in panels)
    return el("figure", None, el("div", {"class": "panels"}, *drawn), el("figcaption", None, caption))


def _described(panel: Panel, title: str) -> str:
    lines = [
        f"{curve.name} from {decimal(curve.points[0].value)} at {panel.sites[curve.points[0].x]} "
        f"to {decimal(curve.points[-1].value)} at {panel.sites[curve.points[-1].x]}"
        for curve in panel.curves
    ]
    levels = [f"{level.name} {decimal(level.points[0].value)}" for level in panel.levels]
    return f"{title}, {panel.title}, {panel.y_label}: {'; '.join(lines + levels)}"
