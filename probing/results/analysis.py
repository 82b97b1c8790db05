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
    """A number that an analysis returns.

    Attributes:
        quantity: name of the quantity: `code_length`, `accuracy`, …
        value, low, high: the number with its 95 % interval (None: no interval).
        unit: `bits`, `fraction`, …
        control: name of the control it was measured on; "" for the task itself.
        draw: number of the control's draw; -1 for the task or for a mean over draws.
        x: value on the x axis of a curve, in the unit `x_name` (`rows`, `rank`, …); None: it is not on a curve.
        label: further text that identifies it, such as the name of a coordinate.
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
    """Holds the result of one analysis of one probe at one site on one task.

    Attributes:
        analysis, task, site, probe: what was run, each as a full recipe.
        points: the numbers, in the order in which they are reported.
        settings: settings of the run that changed the numbers and are in no recipe.
        provenance: see `ProbeResult`.
    """

    analysis: str
    task: str
    site: str
    probe: str
    points: tuple[Point, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def of(self, quantity: str, *, control: str | None = "") -> tuple[Point, ...]:
        """Return the points of one quantity: those of the task, those of one control, or (None) all."""
        return tuple(p for p in self.points if p.quantity == quantity and control in (None, p.control))

    def rows(self) -> list[dict[str, Any]]:
        """Return long-format rows, one per point."""
        head = {"analysis": self.analysis, "task": self.task, "site": self.site, "probe": self.probe}
        tail = {name: self.provenance.get(name) for name in ("store_id", "model", "run")}
        return [head | asdict(point) | tail for point in self.points]


def to_json(result: AnalysisResult) -> str:
    """Return a result as one JSON line with sorted keys."""
    return json.dumps(asdict(result), sort_keys=True, allow_nan=False)


def from_json(line: str) -> AnalysisResult:
    """Return the result that `to_json` wrote.

    Raises:
        ValueError: the text is not such a result.
    """
    result = _reader().validate_json(line)
    check_shapes({}, result.provenance)
    return result


@cache
def _reader() -> TypeAdapter[AnalysisResult]:
    return TypeAdapter(AnalysisResult)


def read_analyses(path: Path) -> list[AnalysisResult]:
    """Return all results in a JSON-lines file, or none if there is no file.

    Raises:
        InputError: a line is not a result; the message gives its number.
    """
    return read_lines(path, from_json, "analyses") if path.is_file() else []


def json_lines(results: Iterable[AnalysisResult]) -> str:
    """Return results as the text of a JSON-lines file."""
    return "".join(to_json(result) + "\n" for result in results)
