"""Converts the values of a row to labels, names, word spans and labelled pairs of words, named character spans and chat
messages, and tells the types of fields.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from probing.errors import BadParameter, CorpusError, unknown_name
from probing.text.corpus import Label
from probing.text.example import composed, named

OPTION = "span."
_NAME = re.compile(r"[A-Za-z_]\w*")


def is_scalar(value: Any) -> bool:
    """Return whether a value can be a single label, unlike a list or mapping."""
    return value is None or isinstance(
        value, str | int | float | datetime.date | datetime.time | datetime.timedelta | decimal.Decimal
    )


def label_of(value: Any) -> Label:
    """Return a value as a label: strings, integers and finite floats unchanged, decimals as floats, dates and times as
    text; None for floats that are not finite.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return float(value) if isinstance(value, decimal.Decimal) else str(value)


def labels_of(value: Any) -> str | None:
    """Return a set of labels as the JSON text that `column:NAME:labels` reads; a single string is a set of one
    label.
    """
    if value is None:
        return None
    return json.dumps([value] if isinstance(value, str) else value, ensure_ascii=False)


def string_of(value: Any) -> str | None:
    """Return the value as an id, document or split; None if it is missing."""
    return named(label_of(value))


@dataclass(frozen=True)
class ComposedRows(Collection[Mapping[str, Any]]):
    """Iterates over rows with their field names in composed form (NFC)."""

    values: Collection[Mapping[str, Any]]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return ({composed(name): value for name, value in row.items()} for row in self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, value: object) -> bool:
        return any(value == row for row in self)


def with_composed_names(
    values: Collection[Mapping[str, Any]], names: Sequence[str], source: str
) -> Collection[Mapping[str, Any]]:
    """Return the rows with their field names in composed form.

    Args:
        values: the rows.
        names: names of all fields that occur in the rows.
        source: name of the source, for messages.

    Raises:
        CorpusError: two fields have the same name in different Unicode forms.
    """
    if all(composed(name) == name for name in names):
        return values
    for position, name in enumerate(names):
        if composed(name) in map(composed, names[:position]):
            raise CorpusError(
                "one field name in two Unicode forms",
                needed="every name once, composed (NFC) or not",
                found=repr(composed(name)),
                where=source,
                next_step="rename one of the two columns",
            )
    return ComposedRows(values)


_PLAIN = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")


def split_words(text: str) -> tuple[tuple[int, int], ...]:
    r"""Return character spans by `\w+(?:[-'’]\w+)*|[^\w\s]`, combining marks and joiners counted as letters.

    >>> [text[a:b] for text in ["Don't, he said."] for a, b in split_words(text)]
    ["Don't", ',', 'he', 'said', '.']
    """
    pattern = _PLAIN if text.isascii() else _with_marks()
    return tuple([match.span() for match in pattern.finditer(text)])


@cache
def _with_marks() -> re.Pattern[str]:
    """Return a pattern that counts marks as letters: Python's `\\w` leaves them out, which would cut Hindi or Thai
    words at every vowel sign.
    """
    marks = [c for c in range(0x300, sys.maxunicode + 1) if unicodedata.category(chr(c))[0] == "M"] + [0x200C, 0x200D]
    ranges: list[list[int]] = []
    for code in sorted(marks):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    letter = r"\w" + "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)
    return re.compile(f"[{letter}]+(?:[-'’][{letter}]+)*|[^{letter}\\s]")


Triples = tuple[tuple[int, int, Label], ...]


def are_pairs(value: Any) -> bool:
    """Return whether a value is a list (possibly empty) of triples [word, word, label]."""
    return isinstance(value, list) and all(
        isinstance(item, list | tuple)
        and len(item) == 3
        and all(type(word) is int for word in item[:2])
        and (item[2] is None or isinstance(item[2], str | int | float))
        for item in value
    )


def pairs_of(row: Mapping[str, Any], names: Sequence[str], n_words: int, place: str) -> dict[str, Triples]:
    """Return the labelled pairs of a row by field; an empty tuple if the field is null.

    Raises:
        CorpusError: a value is not a list of triples, or names a word that the row does not have.
    """
    found = {}
    for name in names:
        value = row.get(name)
        value = [] if value is None else value
        bad = not are_pairs(value) or [item for item in value if not all(0 <= word < n_words for word in item[:2])]
        if bad:
            raise CorpusError(
                f"field {name!r} holds no pairs of words",
                needed=f"[[a, b, label], …] with words 0 to {n_words - 1}",
                found=repr(value if bad is True else bad[0])[:80],
                where=place,
                next_step="correct it: words are counted from 0, and both lie in this row",
            )
        found[name] = tuple([(item[0], item[1], item[2]) for item in value])
    return found


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
