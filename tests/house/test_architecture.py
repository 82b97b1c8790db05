"""The house as drawn: imports go down only, without cycles, and members know nothing of one another."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from probing import registry
from tests.conftest import ROOT

PACKAGE = ROOT / "probing"
FILES = sorted(PACKAGE.rglob("*.py"))
MEMBERS = set(registry.FOLDERS.values())
# From the ground up; a folder may import its own layer (without cycles) and those below.
LAYERS = [
    {"errors", "seeds", "_renamed", "reference", "registry", "system", "files", "provenance"},
    {"text", "labels", "statistics", "results", "verdicts", "neuronpedia"},
    {"contracts"},
    {"readers", "tasks", "probes", "controls", "measures", "analyses", "executors", "models", "recipes"},
    {"states"},
    {"training", "dictionaries"},
    {"use", "similarities", "lenses"},
    {"circuits"},
    {"plantbench", "reporting", "scoring", "inspecting"},
    {"jobs"},
    {"cli", "__main__", "__init__"},
]


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def home(name: str) -> str:
    return name.rpartition(".")[0]


NAMES = {name_of(file) for file in FILES}


@cache
def tree_of(file: Path) -> ast.Module:
    """The syntax of a file, which is parsed once."""
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports(file: Path, *, at_load: bool = False) -> set[str]:
    """Modules of the package that a file imports; with `at_load`, only those imported when it is."""
    tree = tree_of(file)
    nodes = tree.body if at_load else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "probing":
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in NAMES else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in NAMES}
    return {name for name in found if name != "probing"}


def layer(name: str) -> int:
    part = name.split(".")[1]
    found = [level for level, parts in enumerate(LAYERS) if part in parts]
    assert found, f"{name} has no place in the house: name it in LAYERS and in the README"
    return found[0]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_down_only(file: Path) -> None:
    name = name_of(file)
    up = [other for other in imports(file) if layer(other) > layer(name)]
    assert not up, f"{name} imports {up}"


@pytest.mark.parametrize("file", [f for f in FILES if home(name_of(f)) in MEMBERS], ids=name_of)
def test_members_know_no_other_folder_of_members(file: Path) -> None:
    others = {home(name) for name in imports(file) if not name.rpartition(".")[2].startswith("_")}
    assert not others & MEMBERS - {home(name_of(file))}


def test_no_cycles() -> None:
    graph = {name_of(file): imports(file, at_load=True) - {name_of(file)} for file in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(FILES)
