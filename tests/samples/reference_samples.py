"""The reference data that ships, as the tests of it read it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import ModuleType
from typing import Any

from tests.conftest import REFERENCE, ROOT

ANSWERS = {
    ("past", "singular"): "was",
    ("past", "plural"): "were",
    ("present", "singular"): "is",
    ("present", "plural"): "are",
}

Row = dict[str, Any]


def read(split: str) -> list[Row]:
    return [json.loads(line) for line in (REFERENCE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def every(rows: dict[str, list[Row]]) -> list[Row]:
    return [row for part in rows.values() for row in part]


def load_grammar() -> ModuleType:
    """scripts/make_reference_corpus.py as a module."""
    name = "make_reference_corpus"
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def script(name: str, *arguments: str) -> str:
    command = [sys.executable, f"scripts/{name}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
