"""Prints to the terminal with control characters escaped, and makes tables for terminal and notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from probing.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text to standard output or (`err`) standard error; control characters in it are shown escaped."""
    import typer

    typer.echo(printable(text), err=err, nl=nl)


def console(*, err: bool = False) -> Console:
    """Return a console for tables and bars; control characters in whatever it renders are shown escaped."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)  # before cells are measured

        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    return Plain(stderr=err)


def shown(text: str, style: str = "") -> Text:
    """Return a text as a cell or line for a console, with markup not interpreted and control characters escaped."""
    from rich.text import Text

    return Text(printable(text), style=style)


_CELL = "text-align:left;vertical-align:top;padding:.15em .8em .15em 0"
_MOST = 12


def card(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Return an HTML table of names and values, for notebooks; everything in it is escaped."""
    line = f'<tr><th style="{_CELL}">{{}}</th><td style="{_CELL}">{{}}</td></tr>'
    cells = "".join(line.format(_html(name), _html(value)) for name, value in rows)
    return f"<table><caption><b>{_html(title)}</b></caption><tbody>{cells}</tbody></table>"


def some(names: Iterable[object]) -> str:
    """Return names in a line, separated by commas: the first 12, and the number of others; `none` if there are none."""
    listed = list(map(str, names))
    return ", ".join(listed[:_MOST]) + (f" and {len(listed) - _MOST} more" if len(listed) > _MOST else "") or "none"


def _html(text: object) -> str:
    return escape(printable(str(text)))
