"""Progress bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

from probing.system.screen import console

_TITLE = TextColumn("{task.description}", markup=False)


class _Rate(ProgressColumn):
    """A column that shows words per second."""

    def render(self, task: ProgressTask) -> Text:
        """Return the rate of the last seconds."""
        return Text(f"{task.speed:,.0f} words/s" if task.speed else "")


@contextmanager
def words_bar(title: str, total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Within the block, show a bar with words per second and time left, on standard error."""
    is_shown = sys.stderr.isatty() if show is None else show
    columns = (_TITLE, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), disable=not is_shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda words: bar.advance(task, words)


@contextmanager
def steps_bar(title: str, unit: str, total: int | None, show: bool | None) -> Iterator[Callable[[int, int], None]]:
    """Within the block, show a bar of steps; it is called with how many are done and of how many, which may be known
    only later.
    """
    is_shown = sys.stderr.isatty() if show is None else show
    columns = (_TITLE, BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
    with Progress(*columns, console=console(err=True), disable=not is_shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, of: bar.update(task, completed=done, total=of)
