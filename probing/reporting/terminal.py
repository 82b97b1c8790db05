"""Prints lines and tables in the terminal, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from probing.system.screen import shown

WIDE = 120  # columns of a terminal from which on whole intervals are printed
_WORDS = ("site", "probe", "site a", "site b")  # headings of columns of words where nothing else is said


def grid(columns: Sequence[str], texts: Sequence[int] | None = None) -> Table:
    """Return an empty table with these headings; `texts` are the indices of the columns that hold words (None: the
    columns of sites and probes).
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", collapse_padding=True)
    for i, name in enumerate(columns):
        text = name in _WORDS if texts is None else i in texts
        table.add_column(
            shown(name),
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=not text,
            min_width=6 if text else 4,
        )
    return table


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    texts: Sequence[int] | None = None,
    *,
    title: str = "",
    note: str = "",
) -> None:
    """Print a table (see `grid`), with a title above and a note below it if they are given."""
    print_lines(console, filter(None, [title]), style="bold")
    table = grid(columns, texts)
    for row in rows:
        table.add_row(*map(shown, row))
    console.print(table)
    print_lines(console, filter(None, [note]), style="dim")


def print_lines(console: Console, lines: Iterable[str], style: str = "") -> None:
    """Print each line in one style."""
    for line in lines:
        console.print(shown(line, style=style))


def print_limits(console: Console, limits: Iterable[str], title: str = "What this does not show:") -> None:
    """Print what results do not show, a line for each sentence."""
    print_lines(console, [title], style="bold")
    print_lines(console, (f"- {sentence}" for sentence in limits))
