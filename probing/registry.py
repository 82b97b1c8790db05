"""A registry whose entries are files: `probing/probes/linear.py` is the probe named `linear`."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from types import ModuleType

from probing.errors import unknown_name

FOLDERS = (
    "corpora", "tasks", "models", "probes", "controls", "measures", "analyses", "executors", "interventions",
    "behaviours",
)  # fmt: skip
_SINGULAR = {"corpora": "corpus reader", "analyses": "analysis"}


def names(folder: str) -> list[str]:
    """Registered names in one extension folder, sorted, without importing any member.

    Raises:
        UnknownName: no such folder.
    """
    if folder not in FOLDERS:
        raise unknown_name("extension folder", folder, FOLDERS)
    own = {path.stem for path in (Path(__file__).parent / folder).glob("[a-z]*.py")}
    return sorted(own | set(_entry_points(folder)))


def get(folder: str, name: str) -> ModuleType:
    """Import the member `name` of `folder`; only that file is imported.

    Raises:
        UnknownName: with the list and the nearest match.
    """
    known = names(folder)
    if name not in known:
        raise unknown_name(_SINGULAR.get(folder, f"{folder.removesuffix('s')} name"), name, known)
    module = _entry_points(folder).get(name, f"probing.{folder}.{name}")
    return importlib.import_module(module)


def _entry_points(folder: str) -> dict[str, str]:
    """Members that other installed packages add under the group `probing.<folder>`."""
    return {point.name: point.module for point in importlib.metadata.entry_points(group=f"probing.{folder}")}
