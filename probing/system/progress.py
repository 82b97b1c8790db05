"""Shows progress on standard error: a bar in a terminal, an updated line in a notebook, else a plain line every
30 s.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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

from probing.system.screen import console, say

LINE_SECONDS = 30.0
_RENEWED = 0.5  # seconds between two states of a notebook's line
_TITLE = TextColumn("{task.description}", markup=False)


class Steps:
    """Counts the steps of a long run, and calls `changed` at every update.

    Attributes:
        title: name of the work.
        done, total: numbers of steps; total None: not known yet.
    """

    def __init__(self, title: str, total: int | None, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self._before = done
        self._begun = time.monotonic()
        self.changed: Callable[[], None] = lambda: None

    def advance(self, count: int) -> None:
        """Add `count` to the number of steps done."""
        self.update(self.done + count, self.total)

    def update(self, done: int, total: int | None, title: str = "") -> None:
        """Set the number of steps done, their total, and (if not empty) the title."""
        self.done, self.total, self.title = done, total, title or self.title
        self.changed()

    def said(self) -> str:
        """Return the state in one line: `extracting: 4,096 of 21,637 words (19 %), 0:00:31, about 0:02:12 left`."""
        seconds = time.monotonic() - self._begun
        of = f" of {self.total:,} {self.unit} ({100 * self.done // self.total} %)" if self.total else f" {self.unit}"
        new = self.done - self._before
        left = (self.total - self.done) * seconds / new if self.total and new else None
        return f"{self.title}: {self.done:,}{of}, {_clock(seconds)}" + (f", about {_clock(left)} left" if left else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@contextmanager
def counted(
    steps: Steps, columns: Sequence[ProgressColumn], show: bool | None, *, transient: bool = False
) -> Iterator[Steps]:
    """Within the block, show the steps; nothing is shown if `show` is False.

    Args:
        steps: the steps.
        columns: columns of the bar in a terminal.
        show: False: show nothing; True or None: show progress as the terminal or notebook allows; True also prints a
            last line if there is no bar.
        transient: whether the bar is removed at the end and no last line is printed.
    """
    if show is False or sys.stderr is None:
        yield steps
    elif sys.stderr.isatty():
        with Progress(*columns, console=console(err=True), transient=transient) as bar:
            task = bar.add_task(steps.title, total=steps.total, completed=steps.done)
            steps.changed = lambda: bar.update(task, completed=steps.done, total=steps.total, description=steps.title)
            yield steps
    elif (shell := notebook()) is not None:
        with _renewed_line(steps, shell):
            yield steps
    else:
        with _lines(steps):
            yield steps
        if show and not transient:
            say(steps.said(), err=True)


def notebook() -> Any:
    """Return the IPython shell if this process runs a notebook; else None."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


@contextmanager
def _renewed_line(steps: Steps, shell: Any) -> Iterator[None]:
    """Within the block, the output of the cell has a line with the state of the steps."""
    display = sys.modules["IPython"].display
    handle = display.display({"text/plain": steps.said()}, raw=True, display_id=True)
    latest = 0.0

    def renew(at_once: bool = False) -> None:
        nonlocal latest
        if at_once or time.monotonic() - latest > _RENEWED:
            latest = time.monotonic()
            handle.update({"text/plain": steps.said()}, raw=True)

    steps.changed = renew
    try:
        yield
    finally:
        renew(at_once=True)


@contextmanager
def _lines(steps: Steps) -> Iterator[None]:
    """Within the block, print the state of the steps to standard error every 30 s, whether or not a step ended."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(LINE_SECONDS):
            say(steps.said(), err=True)

    thread = threading.Thread(target=work, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Rate(ProgressColumn):
    """A column that shows words per second."""

    def render(self, task: ProgressTask) -> Text:
        """Return the rate of the last seconds."""
        return Text(f"{task.speed:,.0f} words/s" if task.speed else "")


@contextmanager
def words_bar(title: str, total: int, show: bool | None, *, are_rows: bool = True) -> Iterator[Callable[[int], None]]:
    """Within the block, show progress in words, with words per second and the time left; yield a function that adds a
    number of words. Where the rows are not words (`are_rows` False), such as tokens, it says that words of text are
    counted.
    """
    columns = (_TITLE, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with counted(Steps(title, total, "words" if are_rows else "words of text"), columns, show) as steps:
        yield steps.advance


@contextmanager
def steps_bar(title: str, unit: str, total: int | None, show: bool | None) -> Iterator[Callable[[int, int], None]]:
    """Within the block, show steps; call the yielded function with the number of steps done and the number of all
    steps, which may become known later.
    """
    columns = (_TITLE, BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
    with counted(Steps(title, total, unit), columns, show) as steps:
        yield steps.update


@contextmanager
def fits_bar(title: str, total: int, done: int, show: bool | None) -> Iterator[Steps]:
    """Within the block, show progress in fits, and remove the bar afterwards; yield the `Steps` to update."""
    columns = (_TITLE, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with counted(Steps(title, total, "fits", done), columns, show, transient=True) as steps:
        yield steps
