"""Finished results in a folder, so that a property is not measured twice."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.errors import DamagedUnit, InputError
from probing.files.whole_files import read_sealed, sealed, sweep, write_atomically
from probing.provenance import digest
from probing.results.use import UseResult

VERSION = 10  # raised when a number of a `UseResult`, or how one is kept, changes
FOLDER = "use"


class Done:
    """Keeps results by a hash of everything that enters them.

    Args:
        folder: of the run; None: nothing is kept.
        common: what all properties of the run share.
    """

    def __init__(self, folder: Path | None, common: Mapping[str, Any]) -> None:
        self._folder = None if folder is None else folder / FOLDER
        self._common = dict(common)
        for place in [] if folder is None else [folder, folder / FOLDER]:
            sweep(place)

    def unit(self, key: Mapping[str, Any]) -> str:
        """Return the hash of everything that enters a result."""
        return digest(self._common | dict(key))[:32]

    def _file(self, key: Mapping[str, Any]) -> Path | None:
        return None if self._folder is None else self._folder / f"{self.unit(key)}.json"

    def get(self, key: Mapping[str, Any]) -> UseResult | None:
        """Return the result, if it was measured and can be read."""
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        text = read_sealed(file)
        try:
            if text is not None:
                return UseResult.from_json(text)
        except InputError:
            pass
        warnings.warn(
            f"{key.get('task')} is measured again: its file is not as it was written (changed, or of an earlier "
            f"version): {file}",
            DamagedUnit,
            stacklevel=3,
        )
        return None

    def put(self, key: Mapping[str, Any], result: UseResult) -> UseResult:
        """Keep a result, and return it."""
        file = self._file(key)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, sealed(result.to_json()))
        return result
