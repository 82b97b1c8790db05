"""The reliability figures (docs/reliability.md): short ones always, the full counts with `-m slow`."""

from __future__ import annotations

import importlib.util
import re
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


def run(*flags: str, seconds: int) -> tuple[int, str]:
    """Exit status and output of the script, from a process of its own: figures fork, and this process has threads."""
    command = [sys.executable, str(SCRIPT), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def short_table(request: pytest.FixtureRequest) -> tuple[dict[str, str], str]:
    """By figure, its row of the script's table and what is wrong, of all short figures that tests ask for; and all that
    the script printed.
    """
    tests = [item for item in request.session.items if item.name.startswith("test_the_short_figure_is_reached[")]
    names = [name for name in SHORT if any(item.name.endswith(f"[{name}]") for item in tests)]
    _, output = run("--short", "--only", *names, seconds=300 * len(names))
    parts = re.split(r"^(F\d+) ", output, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True)), output


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_the_short_figure_is_reached(name: str, short_table: tuple[dict[str, str], str]) -> None:
    rows, output = short_table
    assert " pass " in rows.get(name, "").partition("\n")[0], output


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FIGURES if name not in (*TIMED, *OF_TESTS)])
def test_the_full_figure_is_reached(name: str) -> None:
    status, output = run("--only", name, seconds=3000)
    assert status == 0 and " pass " in output, output


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
