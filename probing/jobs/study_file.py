"""Reads the YAML file of a study as a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probing.errors import ConfigError
from probing.files.strict_yaml import strict_yaml
from probing.reference import folder as shipped_folder

MAX_STUDY_BYTES = 1_000_000


def load_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping that a study file holds.

    Raises:
        ConfigError: the file is missing, too large, not YAML, or not a mapping.
    """
    if not file.is_file():
        raise ConfigError(
            "study file not found",
            found=str(file),
            next_step=f"see the one that ships, {shipped_folder() / 'study.yaml'}",
        )
    if file.stat().st_size > MAX_STUDY_BYTES:
        raise ConfigError("study file too large", needed="at most 1 MB", found=f"{file.stat().st_size} bytes")
    try:
        values = strict_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("study file is not valid YAML", found=str(error)[:500], where=str(file)) from None
    if not isinstance(values, dict):
        raise ConfigError(
            "a study file is a mapping", needed="keys name, model, corpus, extract, train", where=str(file)
        )
    return values
