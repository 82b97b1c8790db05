"""Finds the reference study that is installed with the package: `probing:reference` names its model, corpus or study
file.
"""

from __future__ import annotations

from pathlib import Path

from probing.errors import unknown_name

PREFIX = "probing:"
REFERENCE = f"{PREFIX}reference"


def folder() -> Path:
    """Return the folder of the reference corpus, model and study, in an installed package or in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "reference_data"  # setup.py has datasets/reference installed there
    return installed if installed.is_dir() else package.parent / "datasets" / "reference"


def shipped(name: str, part: str) -> str:
    """Return the path of a part (`model`, `corpus` or `study`) of the reference study, if `name` is
    `probing:reference`; otherwise return `name`.

    Raises:
        UnknownName: the name begins with `probing:` but is not `probing:reference`.
    """
    if not name.startswith(PREFIX):
        return name
    if name != REFERENCE:
        raise unknown_name("name of what ships", name, [REFERENCE])
    return str(folder() / part)
