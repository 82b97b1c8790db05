"""Reads named character spans, chat messages and field types from the rows of a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probing.errors import BadParameter, CorpusError, unknown_name
from probing.readers._values import are_pairs, is_scalar
from probing.text.example import composed

OPTION = "span."
_NAME = re.compile(r"[A-Za-z_]\w*")


def span_fields(options: Mapping[str, str], names: Sequence[str], source: str) -> dict[str, tuple[str, ...]]:
    """Return the columns of each span that an option defines: one column of substrings, or the columns of start and
    end.

    Raises:
        BadParameter: the option does not have the form `span.NAME=COLUMN` or `span.NAME=START:END`.
        CorpusError: there is no such column.
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
        field: name of the field that holds a mapping of spans; "": none.
        fields: columns by span name, see `span_fields`.
        text: the row's text.
        place: place of the row, for messages.

    Raises:
        CorpusError: a span lies outside the text, or a substring does not occur exactly once.
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


Messages = tuple[tuple[str, str], ...]


def are_messages(value: Any) -> bool:
    """Return whether a value is a non-empty list of mappings with the strings `role` and `content`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in value)
    )


def messages_of(row: Mapping[str, Any], field: str, place: str) -> Messages:
    """Return (role, content) of every message of a row; empty if `field` is "" or the value is null.

    Raises:
        CorpusError: the value is not a list of messages.
    """
    value = row.get(field) if field else None
    if value is None:
        return ()
    if not are_messages(value):
        raise CorpusError(
            f"{field} is no list of messages",
            needed='[{"role": "user", "content": "…"}, …]',
            found=repr(value)[:80],
            where=place,
            next_step=f"correct it, or read with {field}=none",
        )
    return tuple((message["role"], message["content"]) for message in value)


def last_of_user(messages: Messages, place: str) -> str:
    """Return the content of the last message with role `user`.

    Raises:
        CorpusError: there is no such message.
    """
    contents = [content for role, content in messages if role == "user"]
    if not contents:
        raise CorpusError(
            "messages without a user's",
            needed="a message of role user, or a field `text`",
            found=", ".join(role for role, _ in messages) or "no messages",
            where=place,
        )
    return contents[-1]


@dataclass
class Field:
    """Summarises the values of one field over all rows."""

    has_string: bool = False
    has_words: bool = False
    has_mapping: bool = False
    has_messages: bool = False
    has_scalar: bool = False
    is_string: bool = True
    is_plain: bool = True
    has_names: bool = False
    is_names: bool = True
    lists: int = 0
    triples: int = 0
    fitting: int = 0

    def see(self, value: Any) -> None:
        """Add one value that is not null to the summary."""
        if isinstance(value, list):
            self.is_string = False
            self.lists += 1
            self.triples += are_pairs(value)
            are_names = all(isinstance(item, str) for item in value)
            self.has_words |= are_names
            self.has_names |= are_names and bool(value)
            self.is_names &= are_names
            self.has_messages |= are_messages(value)
            self.is_plain &= all(is_scalar(item) for item in value)
            return
        is_string = isinstance(value, str)
        self.has_string |= is_string
        self.is_string &= is_string
        self.is_names &= is_string
        self.has_mapping |= isinstance(value, dict)
        self.has_scalar = True
        self.is_plain &= is_scalar(value)

    @property
    def level(self) -> str:
        """Level of the field: `word`, `sentence`, `pair`, `labels` (a set of labels per row), or "" for a field that is
        left out.
        """
        if not self.is_plain:
            return "pair" if 2 * self.triples > self.lists and not self.has_scalar else ""
        if not self.lists:
            return "sentence"
        if 2 * self.fitting > self.lists and not self.has_scalar:
            return "word"
        return "labels" if self.is_names and self.has_names else ""


def fields_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Field]:
    """Return a summary of every field by name, in order of first occurrence."""
    found: dict[str, Field] = {}
    for row in rows:
        for name, value in row.items():
            if name not in found:
                found[name] = Field()
            if value is not None:
                found[name].see(value)
    return found
