"""The notebooks of docs/examples name public names only, open and close as promised, and run with their figures."""

from __future__ import annotations

import ast
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import probing
from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "examples"
NAMES = ("your_own_csv", "what_a_treebank_says", "decodable_is_not_used", "a_language_model")
FENCE = re.compile(r"^```(\{code-cell\} python|python)\n(.*?)^```$", re.M | re.S)
CELL = "{code-cell} python"
NOT_PUBLIC = {"probing.use.patching.prompt_pairs"}  # whose notebook says that this path may change
SPEC = "https://vega.github.io/schema/vega-lite/"


@dataclass(frozen=True)
class Notebook:
    """A text notebook: its header, its prose without code, its cells, and code that is shown and not run."""

    header: str
    prose: str
    cells: tuple[str, ...]
    shown: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Notebook:
        _, header, body = path.read_text(encoding="utf-8").split("---\n", 2)
        blocks = FENCE.findall(body)
        cells, shown = (tuple(code for kind, code in blocks if (kind == CELL) is run) for run in (True, False))
        return cls(header, FENCE.sub("", body), cells, shown)


@pytest.fixture(params=NAMES)
def notebook(request: pytest.FixtureRequest) -> Notebook:
    return Notebook.read(FOLDER / f"{request.param}.md")


def test_it_has_the_header_of_a_text_notebook_and_all_its_blocks_are_read(notebook: Notebook) -> None:
    assert "format_name: myst" in notebook.header
    assert "kernelspec:" in notebook.header
    assert len(notebook.cells) > 5
    assert "```" not in notebook.prose


def test_code_parses_and_names_public_names_only(notebook: Notebook) -> None:
    for code in (*notebook.cells, *notebook.shown):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pb":
                assert node.attr in probing.__all__
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "probing":
                assert node.module in NOT_PUBLIC
                assert "that path may change" in " ".join(notebook.prose.split())
                home = importlib.import_module(node.module or "")
                assert [name.name for name in node.names if not hasattr(home, name.name)] == []


def test_it_opens_with_a_question_and_closes_with_what_would_overturn_it(notebook: Notebook) -> None:
    first = notebook.prose.strip().split("\n\n")[1]
    assert first.startswith("**The question.** ")
    assert "?" in first
    sections = re.findall(r"^## (.+)$", notebook.prose, re.M)
    assert sections[-1] == "What would overturn this"
    assert notebook.prose.split(f"## {sections[-1]}")[1].count("\n* ") >= 3


def test_it_names_no_folder_of_a_machine_and_writes_into_a_new_one(notebook: Notebook) -> None:
    assert "os.chdir(tempfile.mkdtemp())" in notebook.cells[0]
    assert not re.search(r"/(home|root|tmp|work|usr)/|[A-Z]:\\", "".join((notebook.prose, *notebook.cells)))


def test_links_to_pages_lead_somewhere(notebook: Notebook) -> None:
    links = re.findall(r"\]\(([^)#]+)", notebook.prose)
    assert [link for link in links if not (FOLDER / link).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_every_plot_gives_a_figure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    outputs = outputs_of(name, monkeypatch)
    plots = [(code, shown) for code, shown in outputs if ".plot(" in code]
    assert plots
    for code, shown in plots:
        charts = [data for data in shown if str(data.get("application/vnd.vegalite.v6+json", "")).count(SPEC)]
        assert len(charts) == 1, code
        assert str(charts[0]["image/svg+xml"]).startswith("<svg ")


def outputs_of(name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[dict[str, Any]]]]:
    """The code of each cell, and what it displayed, by media type.

    The notebook is run, or was run by `scripts/docs`: PROBING_NOTEBOOKS names the folder of those that have been.
    """
    nbformat = pytest.importorskip("nbformat")
    notebook = Notebook.read(FOLDER / f"{name}.md")
    if folder := os.environ.get("PROBING_NOTEBOOKS"):
        made = nbformat.read(Path(folder) / f"{name}.ipynb", 4)
    else:
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in notebook.cells])
        run(made, monkeypatch)
    cells = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    assert [cell["source"].strip() for cell in cells] == [code.strip() for code in notebook.cells]
    assert all(cell["execution_count"] for cell in cells)
    return [
        (cell["source"], [dict(output["data"]) for output in cell["outputs"] if "data" in output]) for cell in cells
    ]


def run(notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the cells in a fresh kernel, without a network."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
