"""The reliability figures (docs/reliability.md): short ones always, the full counts with `-m slow`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from tests.reliability.figures import FIGURES
from tests.reliability.tally import Tally

SCRIPT = ROOT / "scripts" / "reliability.py"
SHORT = [name for name, figure in FIGURES.items() if figure.short]
TIMED = ("F10", "F11")  # no test asserts a time; the script does
OF_TESTS = ("F7", "F8")  # tests by themselves


def run(*flags: str, seconds: int) -> str:
    """The script's table, from a process of its own: the figures fork, and this process has threads."""
    command = [sys.executable, str(SCRIPT), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_the_short_figure_is_reached(name: str) -> None:
    assert " pass " in run("--short", "--only", name, seconds=300)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FIGURES if name not in (*TIMED, *OF_TESTS)])
def test_the_full_figure_is_reached(name: str) -> None:
    assert " pass " in run("--only", name, seconds=3000)


def test_nothing_done_nothing_wrong_or_an_unharmed_careless_writer_is_no_pass() -> None:
    done = Counter({"kills": 3})
    assert Tally("F1", "", done, naive=Counter({"lost": 1})).passed
    assert not Tally("F1", "", done, naive=Counter()).passed
    assert not Tally("F1", "", Counter()).passed
    assert not Tally("F1", "", done, problems=[("lost", "shard 1")]).passed
    assert not Tally("F1", "", done, unrun="no such test").passed


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability_script", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("problems", "status"), [([], 0), ([("lost", "shard 1")], 1)])
def test_exit_status_is_1_if_any_figure_fails(
    problems: list[tuple[str, str]], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = _script()

    def tally(name: str, *, short: bool, base: Path | None) -> Tally:
        return Tally(name, "", Counter({"kills": 3}), problems=problems if name == "F2" else [])

    monkeypatch.setattr(script, "run", tally)
    monkeypatch.setattr(sys, "argv", ["reliability.py", "--short", "--only", "F1", "F2"])
    assert script.main() == status
    assert ("FAIL" in capsys.readouterr().out) == bool(status)
