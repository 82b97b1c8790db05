"""The job of a child process, passed as its one argument."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probing.states.importing.foreign.limits import Limits


@dataclass(frozen=True)
class ChildJob:
    """The job of a child process.

    Attributes:
        format: `npy`, `hdf5`, `json`, `safetensors` or `store`.
        paths: files, or the directory of a store.
        n_bytes: their size in sum.
        examples: how many the corpus has.
        limits: what it may cost.
    """

    format: str
    paths: tuple[Path, ...]
    n_bytes: int
    examples: int
    limits: Limits

    def to_json(self) -> str:
        """Return the job as JSON, for the command line."""
        values = {"format": self.format, "paths": [str(path) for path in self.paths], "n_bytes": self.n_bytes}
        return json.dumps(values | {"examples": self.examples, "limits": vars(self.limits)})

    @classmethod
    def from_json(cls, text: str) -> ChildJob:
        """Return the job that `to_json` wrote on the command line."""
        values: dict[str, Any] = json.loads(text)
        paths = tuple(Path(path) for path in values.pop("paths"))
        return cls(paths=paths, limits=Limits(**values.pop("limits")), **values)
