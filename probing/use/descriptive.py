"""Numbers that stand beside a verdict and decide nothing: if one of them cannot be measured, the verdict goes without
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from probing.errors import ProbingError
from probing.results.use import UseCell


def spared(what: str, cell: UseCell, measure: Callable[[UseCell], UseCell]) -> UseCell:
    """Return the cell with what `measure` adds to it. Where that fails, or gives numbers that are not finite, the cell
    stays without them, and a note says what is missing and why.

    Args:
        what: is measured, for the note.
        cell: with all that the verdict needs.
        measure: gives a cell with more descriptive numbers.
    """
    try:
        measured = measure(cell)
    except Exception as error:  # whatever it is: hours of work that decide the verdict are not lost to a number beside
        why = error.message if isinstance(error, ProbingError) else f"{type(error).__name__}: {error}"
        return replace(cell, notes=(*cell.notes, f"{what} not measured: {why}"))
    kept: UseCell = _finite(measured, cell)
    if kept == measured:
        return measured
    return replace(kept, notes=(*kept.notes, f"{what} not measured: numbers that are not finite"))


def _finite(value: Any, before: Any) -> Any:
    """Return a value without the numbers that are not finite, each of which stays as it was before."""
    if value is before or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, float):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return replace(value, **{name: _finite(getattr(value, name), getattr(before, name)) for name in names})
    if isinstance(value, tuple):
        return tuple(one for one in value if _is_finite(one))
    return {name: one for name, one in value.items() if _is_finite(one)} if isinstance(value, dict) else value


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
