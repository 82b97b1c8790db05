"""Output to the terminal: text with its control characters escaped, tables, and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as ProgressTask
from rich.text import Text

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


_TITLE = TextColumn("{task.description}", markup=False)


class _Rate(ProgressColumn):
    """A column that shows words per second."""

    def render(self, task: ProgressTask) -> Text:
        """Return the rate of the last seconds."""
        return Text(f"{task.speed:,.0f} words/s" if task.speed else "")


@contextmanager
def words_bar(title: str, total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Within the block, show a bar on standard error, with words per second and the time left."""
    is_shown = sys.stderr.isatty() if show is None else show
    columns = (_TITLE, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), disable=not is_shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda words: bar.advance(task, words)


@contextmanager
def steps_bar(title: str, unit: str, total: int | None, show: bool | None) -> Iterator[Callable[[int, int], None]]:
    """Within the block, show a bar of steps; call the yielded function with the number of steps done and the number of
    all steps, which may become known later.
    """
    is_shown = sys.stderr.isatty() if show is None else show
    columns = (_TITLE, BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
    with Progress(*columns, console=console(err=True), disable=not is_shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, of: bar.update(task, completed=done, total=of)
