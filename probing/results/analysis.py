"""Point, AnalysisResult: the results of an analysis of a site, as JSON lines and one long table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from probing.files.fact_shapes import check_shapes
from probing.results.probe import read_lines


@dataclass(frozen=True)
class Point:
    """A number that an analysis gives.

    Attributes:
        quantity: what it is: `code_length`, `accuracy`, …
        value, low, high: the number with its 95 % interval (None: no interval).
        unit: `bits`, `fraction`, …
        control: the control task it was measured on, "" for the task itself.
        draw: the draw of that control, -1 for the task or for a mean over draws.
        x: where on the curve it lies (None: it is not on one), of the kind that `x_name` says: `rows`, `rank`, …
        label: what else tells it apart, e.g. the name of a coordinate.
    """

    quantity: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    control: str = ""
    draw: int = -1
    x: float | None = None
    x_name: str = ""
    label: str = ""


@dataclass(frozen=True)
class AnalysisResult:
    """The result of one analysis of one probe at one site on one task.

    Attributes:
        analysis, task, site, probe: what was run, each as a full recipe.
        points: its numbers, in the order in which they are reported.
        settings: what of the run entered them and stands in no recipe.
        provenance: as of a ProbeResult.
    """

    analysis: str
    task: str
    site: str
    probe: str
    points: tuple[Point, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def of(self, quantity: str, *, control: str | None = "") -> tuple[Point, ...]:
        """Return the points of one quantity: of the task itself, of one control, or (None) of all."""
        return tuple(p for p in self.points if p.quantity == quantity and control in (None, p.control))

    def rows(self) -> list[dict[str, Any]]:
        """Return long-format rows, one a point."""
        head = {"analysis": self.analysis, "task": self.task, "site": self.site, "probe": self.probe}
        tail = {name: self.provenance.get(name) for name in ("store_id", "model", "run")}
        return [head | asdict(point) | tail for point in self.points]


def to_json(result: AnalysisResult) -> str:
    """Return one JSON line, keys sorted."""
    return json.dumps(asdict(result), sort_keys=True, allow_nan=False)


def from_json(line: str) -> AnalysisResult:
    """Return the result that `to_json` wrote.

    Raises:
        ValueError: another kind of text.
    """
    result = _reader().validate_json(line)
    check_shapes({}, result.provenance)
    return result


@cache
def _reader() -> TypeAdapter[AnalysisResult]:
    return TypeAdapter(AnalysisResult)


def read_analyses(path: Path) -> list[AnalysisResult]:
    """Return all results of a JSON-lines file; none if there is no file.

    Raises:
        InputError: a line that is no result, with its number.
    """
    return read_lines(path, from_json, "analyses") if path.is_file() else []


def json_lines(results: Iterable[AnalysisResult]) -> str:
    """Return the text of a JSON-lines file."""
    return "".join(to_json(result) + "\n" for result in results)
