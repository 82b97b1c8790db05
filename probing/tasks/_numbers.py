"""Finds columns of numbers that a few cells, or decimal commas, make columns of classes, and columns of dates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from probing.tasks._columns import kind_of
from probing.text.corpus import Label
from probing.text.example import named

MOSTLY = 0.95  # of the values: then the others are taken for odd cells of a column of numbers
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,3})?")  # 007 is a code, not a number
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?")
_TIME = re.compile(r"(-?\d+ days?,? )?\d{1,2}:\d\d(:\d\d.*)?")
INSTEAD_OF_DATES = "give a number such as days since a date, or a class such as the year"
INSTEAD_OF_TIMES = "give a number such as seconds, or a class such as the hour"
_WITH_COMMA = re.compile(r"[+-]?(0|[1-9]\d*),\d+")


def has_decimal_comma(value: Label) -> bool:
    """Return whether a value is a number written with a decimal comma, such as `1,5`."""
    return isinstance(value, str) and _WITH_COMMA.fullmatch(value.strip()) is not None


def instead_of_times(values: Sequence[Label]) -> str | None:
    """Return what to give in place of values that are all dates (as ISO 8601 writes them) or all times or durations;
    None for others.
    """
    for pattern, instead in ((_DATE, INSTEAD_OF_DATES), (_TIME, INSTEAD_OF_TIMES)):
        if values and all(isinstance(value, str) and pattern.fullmatch(value) for value in values):
            return instead
    return None


def odd_number(values: Sequence[Label]) -> dict[str, Any] | None:
    """Return what keeps a column from being one of numbers: the counts `numbers` and `values`, and an `odd` value. It
    is None if all values are numbers, or so many are not that the column is one of classes. Decimal commas count only
    where the numbers would be real-valued (`kind_of`).
    """
    read = [_number(value) for value in values]
    count = sum(one is not None for one in read)
    if count == len(values):
        return None
    odd = next(value for value, one in zip(values, read, strict=True) if one is None)
    with_comma = [
        _number(str(value).strip().replace(",", ".")) if has_decimal_comma(value) else None for value in values
    ]
    both = [one if one is not None else other for one, other in zip(read, with_comma, strict=True)]
    decimal = [one for one in both if one is not None]
    if len(decimal) < MOSTLY * len(values):
        return None
    if any(one is not None for one in with_comma):
        return {"numbers": count, "values": len(values), "odd": str(odd)} if kind_of(decimal) == "real" else None
    return {"numbers": count, "values": len(values), "odd": str(odd)}


def merged_values(values: Sequence[Label]) -> list[str]:
    """Return the names of classes that occur both as a string and as a number or truth value, such as 1 and "1"."""
    types: dict[str, set[bool]] = {}
    for value in values:
        name = named(value)
        if name is not None:
            types.setdefault(name, set()).add(isinstance(value, str))
    return [name for name, found in types.items() if len(found) > 1]


def _number(value: Label) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) else None
