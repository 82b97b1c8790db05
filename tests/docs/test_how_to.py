"""The code of every how-to page runs as it stands, in a folder that has what a checkout has."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted(path.stem for path in (ROOT / "docs" / "how-to").glob("*.md") if path.stem != "index")
FENCE = re.compile(r"^```(\{code-block\} )?(\w+)\n(?::caption: (\S+)\n)?(.*?)^```$", re.M | re.S)


def test_there_are_ten_and_the_index_names_each() -> None:
    index = (ROOT / "docs" / "how-to" / "index.md").read_text(encoding="utf-8")
    assert len(PAGES) >= 10
    assert [page for page in PAGES if f"({page}.md)" not in index or f"\n{page}\n" not in index] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str, warm: list[str], tmp_path: Path) -> None:
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    done = [run(warm, language, name, code, tmp_path) for _, language, name, code in FENCE.findall(text)]
    assert any(done), "a page without code that runs"


def run(python: list[str], language: str, name: str, code: str, folder: Path) -> bool:
    """Write a file that has a caption, run shell and Python, and leave the rest (samples, commands of clusters)."""
    if name:
        (folder / name).write_text(code, encoding="utf-8")
        return False
    if language not in ("sh", "python"):
        return False
    program = f'set -e\nprobing() {{ {shlex.join(python)} -m probing "$@"; }}\n{code}'
    command = ["bash", "-c", program] if language == "sh" else [*python, "-c", code]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{code}\n{ended.stdout}{ended.stderr}"
    assert "Traceback" not in ended.stderr
    return True
