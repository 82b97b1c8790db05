"""The public names, the errors and the README are what they say."""

from __future__ import annotations

import inspect
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import probing
from probing import errors
from probing.errors import ProbingError
from tests.conftest import ROOT

ERRORS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, ProbingError)]


def test_every_public_name_is_importable_and_sorted() -> None:
    assert probing.__all__ == sorted(probing.__all__)
    for name in probing.__all__:
        assert getattr(probing, name) is not None


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_every_error_shows_its_facts_and_survives_a_process_boundary(error: type[ProbingError]) -> None:
    raised = error("it failed", needed="one", found="two", where="there", next_step="mend it")
    copy = pickle.loads(pickle.dumps(raised))
    assert type(copy) is error
    assert str(copy) == str(raised)
    for part in ("it failed", "needed: one", "found: two", "where: there", "next step: mend it"):
        assert part in str(raised)


def test_the_drawn_tree_names_every_error() -> None:
    for error in ERRORS:
        assert error.__name__ in (errors.__doc__ or "")


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that has what the README's examples read."""
    (tmp_path / "datasets").mkdir()
    shutil.copytree(ROOT / "datasets" / "reference", tmp_path / "datasets" / "reference")
    return tmp_path


@pytest.mark.slow
def test_readme_python_runs(checkout: Path) -> None:
    said = []
    for block in blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    probed, scored = said
    assert "resid.1" in probed and "Score(" in probed and "decodable and used" in probed
    assert "false_unused=0.0" in scored and "recall_used=1.0" in scored  # a rule that always says "used"
    assert (checkout / "cache/results/readme/report.html").is_file()


@pytest.mark.slow
def test_readme_shell_runs(checkout: Path) -> None:
    block = next(b for b in blocks("sh") if b.startswith("C="))
    command = f"set -e\nprobing() {{ '{sys.executable}' -m probing \"$@\"; }}\n{block}"
    done = subprocess.run(["bash", "-c", command], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (checkout / "cache/results/readme-shell/results.parquet").is_file()
    assert (checkout / "cache/results/reference/report.html").is_file()
