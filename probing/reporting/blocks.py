"""Blocks of the page: tables, figures, paragraphs, folded parts, and sections of such blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from probing.reporting.charts import Chart, described, panel_chart
from probing.reporting.grids import HeatMap, map_chart
from probing.reporting.panels import Panel
from probing.reporting.wording import Estimate, decimal, interval

Kind = Literal["", "yes", "half", "no"]


@dataclass(frozen=True)
class Number:
    """Holds a number of a table as text, with its interval in small type."""

    text: str
    small: str = ""


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """Holds a table of the page.

    Attributes:
        caption: text above the table.
        head: headings of the columns.
        rows: cells of each row.
        texts: indices of the columns that hold words.
        marked: index of the highlighted row; None: no row.
        source: name of the file that holds the same numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: Sequence[int] = (0,)
    marked: int | None = None
    source: str = "results.parquet"


@dataclass(frozen=True)
class Figure:
    """Holds charts side by side, with a caption and a description in words for readers who cannot see them."""

    charts: Sequence[Chart]
    caption: str
    description: str


@dataclass(frozen=True)
class Words:
    """Holds text of the page; `kind` is `p` (a paragraph per line), `ul` (a list item per line) or `pre` (preformatted
    text).
    """

    kind: Literal["p", "ul", "pre"]
    lines: Sequence[str]


Block = Table | Figure | Words


@dataclass(frozen=True)
class Fold:
    """Holds a folded part of the page: its title, and the blocks that are shown when it is opened."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """Holds a section of the page.

    Attributes:
        anchor, title: anchor and text of the heading.
        models: models whose results it shows; the page hides the section when all of them are filtered out.
        about: short line on the states that were read.
        claims: sentences on the results, the most important first.
        kind: colour of the claims: `yes`, `half`, `no`, or "" for none.
        notes: warnings, which are never folded.
        blocks: figures and tables that are visible.
        folds: folded parts.
    """

    anchor: str
    title: str
    models: Sequence[str] = ()
    about: str = ""
    claims: Sequence[str] = ()
    kind: Kind = ""
    notes: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    folds: Sequence[Fold] = field(default_factory=tuple)


def number(found: Estimate | None, places: int = 3) -> Number:
    """Return a value and its interval as a table cell; a dash for None."""
    return Number("–") if found is None else Number(decimal(found.value, places), interval(found, places))


def panels_figure(panels: Sequence[Panel], caption: str = "") -> Figure:
    """Return panels as a figure, described by the ends of their curves."""
    return Figure([panel_chart(panel) for panel in panels], caption, described(panels))


def maps_figure(maps: Sequence[HeatMap], caption: str = "") -> Figure:
    """Return heat maps as a figure, described by their largest values."""
    return Figure([map_chart(one) for one in maps], caption, ". ".join(one.description for one in maps))


def map_table(found: HeatMap) -> Table:
    """Return the numbers of a heat map as a table."""
    rows = [
        [name, *(decimal(value, 2) if math.isfinite(value) else "–" for value in values)]
        for name, values in zip(found.rows, found.values.tolist(), strict=True)
    ]
    of = f" {found.y_label.capitalize()} by {found.x_label}." if found.x_label and found.y_label else ""
    return Table(f"{found.title}: {found.label}.{of}", [found.y_label, *found.columns], rows, source="the data")
