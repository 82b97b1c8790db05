"""Panels side by side as one figure of the page, with a caption."""

from __future__ import annotations

from collections.abc import Sequence

from probing.reporting.chart import draw
from probing.reporting.curves import Panel
from probing.reporting.markup import Markup, el
from probing.reporting.wording import decimal


def figure(panels: Sequence[Panel], title: str, caption: str) -> Markup:
    """Return a `figure` element; nothing where there are no panels. `title` describes it to readers who cannot see
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
