"""A bar on standard error that counts words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from probing.extraction.shard_reading import Clock


class _Rate(ProgressColumn):
    """Words per second."""

    def render(self, task: ProgressTask) -> Text:
        """The rate of the last seconds."""
        return Text(f"{task.speed:,.0f} words/s" if task.speed else "")


@contextmanager
def words_bar(title: str, total: int, show: bool | None) -> Iterator[Clock]:
    """A bar with words per second and time left, on standard error."""
    is_shown = sys.stderr.isatty() if show is None else show
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as bar:
        task = bar.add_task("words", total=total)
        yield lambda words: bar.advance(task, words)
