"""Blocks of the page: tables, figures, words, what is folded, and sections of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from probing.reporting.charts import Chart
from probing.reporting.wording import (
    decimal,
    interval,
)
from probing.results.probe import Score

Kind = Literal["", "yes", "half", "no"]


@dataclass(frozen=True)
class Number:
    """A number of a table, with its interval in small type."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table: caption, headings, rows; `texts` are the columns that hold words, `marked` the row in colour."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Number]]
    texts: Sequence[int] = (0,)
    marked: int | None = None
    source: str = "results.parquet"


@dataclass(frozen=True)
class Figure:
    """Charts side by side, with a caption and the same in words for those who do not see them."""

    charts: Sequence[Chart]
    caption: str
    description: str


@dataclass(frozen=True)
class Words:
    """Paragraphs (`p`), items of a list (`ul`) or text as it stands (`pre`)."""

    kind: Literal["p", "ul", "pre"]
    lines: Sequence[str]


@dataclass(frozen=True)
class Fold:
    """A title, and what is shown when it is opened."""

    title: str
    blocks: Sequence[Table | Figure | Words]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        anchor, title: of its heading.
        models: whose results it shows; the filter hides it with all of them.
        about: what was measured, in a short line.
        claims: what is found, the first the most important; `kind` is their colour.
        notes: doubts, which are never folded.
        blocks: figures and tables in view.
        folds: what is folded.
    """

    anchor: str
    title: str
    models: Sequence[str] = ()
    about: str = ""
    claims: Sequence[str] = ()
    kind: Kind = ""
    notes: Sequence[str] = ()
    blocks: Sequence[Table | Figure | Words] = ()
    folds: Sequence[Fold] = field(default_factory=tuple)


def number(found: Score | None) -> Number:
    """Return a number with its interval; a dash where there is none."""
    return Number("–") if found is None else Number(decimal(found.value), interval(found))
