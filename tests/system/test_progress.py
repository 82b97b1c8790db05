"""Progress: a plain line now and then where there is no terminal, one line in a notebook, nothing where unwanted."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from probing.system import progress
from probing.system.progress import Steps, fits_bar, steps_bar, words_bar


def test_a_line_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    steps = Steps("extracting", 1200, "words", done=200)
    steps.advance(500)
    assert steps.said() == "extracting: 700 of 1,200 words (58 %), 0:00:30, about 0:00:30 left"


def test_without_a_terminal_a_line_comes_at_intervals_even_within_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    with words_bar("extracting", 10, None) as advance:
        advance(4)
        deadline = time.monotonic() + 10
        said = ""
        while said.count("\n") < 2 and time.monotonic() < deadline:
            said += capsys.readouterr().err
    assert said.splitlines()[-1].startswith("extracting: 4 of 10 words (40 %)")


def test_a_short_run_says_nothing_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with steps_bar("use", "properties", 2, None) as update, fits_bar("upos", 3, 0, True) as steps:
        update(1, 2)
        steps.advance(3)
    with words_bar("extracting", 10, False) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")
    with words_bar("extracting", 10, True) as advance:
        advance(10)
    assert capsys.readouterr().err.startswith("extracting: 10 of 10 words (100 %)")


def test_a_notebook_has_one_line_that_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

    def display(data: Any, raw: bool, display_id: bool) -> Any:
        shown.append(data["text/plain"])
        return handle

    module = SimpleNamespace(
        get_ipython=lambda: SimpleNamespace(kernel=object()), display=SimpleNamespace(display=display)
    )
    monkeypatch.setitem(sys.modules, "IPython", module)  # type: ignore[arg-type]
    with words_bar("extracting", 10, None) as advance:
        advance(10)
    assert shown[0].startswith("extracting: 0 of 10") and shown[-1].startswith("extracting: 10 of 10")
