"""Output to the terminal: text with its control characters escaped; and tables."""

from __future__ import annotations

from collections.abc import Iterable
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
