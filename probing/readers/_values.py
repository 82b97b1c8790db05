"""Converts the values of a row to labels, names, word spans and labelled pairs of words."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
import sys
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from probing.errors import CorpusError
from probing.text.corpus import Label
from probing.text.example import composed, named


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
