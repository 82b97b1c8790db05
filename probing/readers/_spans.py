"""Named character spans of a row: the field `spans`, or options `span.NAME=COLUMN` and `span.NAME=START:END`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from probing.errors import BadParameter, CorpusError, unknown_name
from probing.text.text_forms import composed

OPTION = "span."
_NAME = re.compile(r"[A-Za-z_]\w*")


def span_fields(options: Mapping[str, str], names: Sequence[str], source: str) -> dict[str, tuple[str, ...]]:
    """Return, for each span that an option names, its columns: one of substrings, or those of start and end.

    Raises:
        BadParameter: a name that cannot be asked for.
        CorpusError: no such column.
    """
    found = {}
    for option, value in options.items():
        if not option.startswith(OPTION):
            continue
        name = composed(option.removeprefix(OPTION))
        columns = (value,) if value in names else tuple(value.split(":"))
        if not _NAME.fullmatch(name) or len(columns) > 2:
            raise BadParameter(
                "an option for spans of another form",
                needed="span.NAME=COLUMN or span.NAME=START:END",
                found=f"{option}={value}",
            )
        for column in columns:
            if column not in names:
                raise unknown_name(f"column for option {option}", column, names, where=source, error=CorpusError)
        found[name] = columns
    return found


def spans_of(
    row: Mapping[str, Any], field: str, fields: Mapping[str, tuple[str, ...]], text: str, place: str
) -> dict[str, tuple[int, int]]:
    """Return the spans of one row by name, without those whose value is null.

    Args:
        row: the row.
        field: that of the mapping; "": none.
        fields: columns by span name.
        text: the row's text.
        place: for messages.

    Raises:
        CorpusError: a span outside the text, or a substring that does not occur exactly once.
    """
    mapping = row.get(field) if field else None
    if mapping is not None and not isinstance(mapping, dict):
        raise CorpusError(
            f"{field} is no mapping of names to spans",
            needed='{"NAME": [start, end]}',
            found=repr(mapping)[:80],
            where=place,
            next_step=f"correct it, or read with {field}=none",
        )
    given: dict[str, Any] = {composed(name): value for name, value in (mapping or {}).items()}
    for name, columns in fields.items():
        values = [row.get(column) for column in columns]
        given[name] = None if None in values else values[0] if len(values) == 1 else values
    return {name: _span(name, value, text, place) for name, value in given.items() if value is not None}


def _span(name: str, value: Any, text: str, place: str) -> tuple[int, int]:
    if not _NAME.fullmatch(name):
        raise CorpusError("a span needs a plain name", needed="letters, digits and _", found=repr(name), where=place)
    if isinstance(value, str):
        if not value or text.count(value) != 1:
            raise CorpusError(
                f"span {name!r} is not in the text exactly once",
                needed="its characters once, or [start, end]",
                found=f"{value!r} {text.count(value) if value else 0} times",
                where=place,
            )
        start = text.index(value)
        return start, start + len(value)
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(type(place) is int for place in value)
    if not is_pair or not 0 <= value[0] < value[1] <= len(text):
        raise CorpusError(
            f"span {name!r} is not in the text",
            needed=f"[start, end] with 0 ≤ start < end ≤ {len(text)}",
            found=repr(value)[:80],
            where=place,
        )
    return value[0], value[1]
