"""Habits of the house: small files, data folders without Python, a README that names every room, a light start."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.house.test_architecture import FILES, NAMES, PACKAGE, name_of, tree_of

HEAVY = "pydantic torch transformers datasets sklearn scipy h5py pandas pyarrow altair vl_convert jinja2 numpy ray"


def test_files_are_short() -> None:
    assert not {name_of(f): n for f in FILES if (n := len(f.read_text(encoding="utf-8").splitlines())) > 400}


def test_data_folders_hold_no_python() -> None:
    assert not [*(ROOT / "datasets").rglob("*.py"), *(ROOT / "cache").rglob("*.py")]


def test_readme_names_every_file_and_folder_of_the_package() -> None:
    tree = re.findall(r"```\n(probing/\n.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[0]
    parts = {file.relative_to(PACKAGE).parts[0] for file in FILES} - {"__main__.py"}
    missing = sorted(part for part in parts if not re.search(rf"\b{re.escape(part.removesuffix('.py'))}\b", tree))
    assert not missing


@pytest.mark.parametrize("program", ["import probing", "from probing.cli.commands import main; main()"])
def test_starting_loads_nothing_heavy(program: str) -> None:
    after = f"lambda: print([m for m in {HEAVY.split()!r} if m in sys.modules], file=sys.stderr)"
    code = f"import atexit, sys\natexit.register({after})\n{program}"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def parts_used() -> set[tuple[str, str]]:
    """Libraries, and modules inside them that a file uses by their path without importing them."""
    found = set()
    for file in FILES:
        tree = tree_of(file)
        imports = [name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
        libraries = {one.asname or one.name.partition(".")[0]: one for one in imports}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in libraries:
                one = libraries[node.value.id]
                library = one.name if one.asname else one.name.partition(".")[0]
                if f"{library}.{node.attr}" not in {one.name for one in imports}:
                    found.add((library, node.attr))
    return {(library, part) for library, part in found if is_module(library, part)}


def is_module(library: str, part: str) -> bool:
    top, *inner = library.split(".")
    spec = importlib.util.find_spec(top)
    folders = [Path(place, *inner) for place in (spec.submodule_search_locations or ())] if spec else []
    return any((folder / part).is_dir() or any(folder.glob(f"{part}.*")) for folder in folders)


def test_parts_of_libraries_are_imported_where_they_are_used() -> None:
    """In a process that has loaded nothing else: what other modules have imported makes up for no import."""
    parts = sorted(parts_used(), key=lambda part: (part[0] in ("pandas", "torch"), part))  # those that load others last
    assert {("scipy", "special"), ("torch", "nn"), ("pyarrow", "ipc")} <= set(parts)
    program = f"from importlib import import_module\nfor one, part in {parts}: getattr(import_module(one), part)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_modules_that_are_named_in_texts_exist() -> None:
    """Modules that are imported when they are needed, or run in a process of their own, by names no linter checks."""
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module" and node.args:
                for name in names_in(node.args[0]):
                    assert name in NAMES or name == "probing", f"{name_of(file)} imports {name} when it is run"


def names_in(argument: ast.expr) -> list[str]:
    """The module's name; of one with a number in it, all that are meant."""
    if isinstance(argument, ast.Constant):
        return [str(argument.value)] if str(argument.value).startswith("probing") else []
    text = "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in getattr(argument, "values", []))  # type: ignore[attr-defined]
    return [text.replace("{}", str(tier)) for tier in range(3)] if text.endswith("tier{}") else []
