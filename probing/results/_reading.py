"""Reads a result that one JSON file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from probing.errors import InputError

Result = TypeVar("Result")


def read_result(kind: type[Result], path: Path, mistake: str, command: str) -> Result | None:
    """Return the result in a JSON file; None if there is no such file.

    Args:
        kind: class of the result.
        path: the file.
        mistake: what is said if the file holds no such result.
        command: command that writes such files.

    Raises:
        InputError: the file holds no such result.
    """
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            mistake,
            needed=f"{path.name} as `{command}` wrote it",
            found=f"{place}: {first['msg']}" if place else f"another kind of file: {first['msg']}",
            where=str(path),
            next_step=f"run the same `{command}` again, or remove the file",
        ) from error
