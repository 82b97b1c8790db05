"""Converts the values of a row to labels, names, word spans and labelled pairs of words, and scans bytes of files."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from probing.errors import CorpusError
from probing.text.corpus import Label
from probing.text.grouping import composed, named


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


T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]
_AT_ONCE = 2**20  # bytes; words of 64 bits are cut from a piece
_THREADS = 2  # more wait for the interpreter between numpy's calls
_QUOTE, _BREAKS = ord('"'), (ord("\n"), ord("\r"))


def count(data: Bytes, byte: int) -> int:
    """Return the number of occurrences of a byte."""
    return sum(_pieces(data, lambda at: int(np.count_nonzero(data[at : at + _AT_ONCE] == byte))))


def holds(data: Bytes, byte: int) -> bool:
    """Return whether a byte occurs; the scan stops at the first block that contains it."""
    return any((data[at : at + _AT_ONCE] == byte).any() for at in range(0, len(data), _AT_ONCE))


def extremes(data: Bytes) -> tuple[int, int]:
    """Return the lowest and the highest byte."""
    found = _pieces(data, lambda at: (int(data[at : at + _AT_ONCE].min()), int(data[at : at + _AT_ONCE].max())))
    return min(low for low, _ in found), max(high for _, high in found)


def has_plain_quotes(data: Bytes, separator: str) -> bool:
    """Return whether no quoted cell contains a line break, and every quotation mark opens or closes a cell or is
    doubled.

    The test: marks number 1, 3, 5, … follow an edge of a cell or another mark, and marks number 2, 4, 6, … precede one.
    """
    counts = _pieces(data, lambda at: int(np.count_nonzero(data[at : at + _AT_ONCE] == _QUOTE)))
    before = [n % 2 for n in accumulate(counts, initial=0)]
    if before[-1]:
        return False

    def is_plain(at: int) -> bool:
        part = data[at : at + _AT_ONCE]
        quotes = part == _QUOTE
        breaks = (part == _BREAKS[0]) | (part == _BREAKS[1])
        is_edge = np.ones(len(part) + 2, bool)  # the bytes around the piece, too; the ends of the data are edges
        is_edge[1:-1] = quotes | breaks | (part == ord(separator))
        for place, other in ((0, at - 1), (-1, at + len(part))):
            if 0 <= other < len(data):
                is_edge[place] = data[other] in (_QUOTE, *_BREAKS, ord(separator))
        marks, follows, precedes = _bits(quotes), _bits(is_edge[:-2]), _bits(is_edge[2:])
        quoted = _odd_so_far(marks, odd=before[at // _AT_ONCE])
        wrong = (quoted & _bits(breaks)) | (marks & quoted & ~follows) | (marks & ~quoted & ~precedes)
        return not wrong.any()

    return all(_pieces(data, is_plain))


def _pieces(data: Bytes, work: Callable[[int], T]) -> list[T]:
    """Return what the work gives for the place of each piece; numpy computes without the interpreter's lock."""
    places = range(0, len(data), _AT_ONCE)
    if len(places) < 2:
        return [work(at) for at in places]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, places))


def _bits(flags: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Return flags as words of 64 bits, the first flag the lowest bit."""
    packed = np.packbits(flags, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 8)).view("<u8")


def _odd_so_far(marks: npt.NDArray[Any], *, odd: int) -> npt.NDArray[Any]:
    """Return for each bit whether up to it, and with it, an odd number of bits is set; `odd` is the count before."""
    found = marks.copy()
    for step in (1, 2, 4, 8, 16, 32):  # sums modulo 2 over twice as many bits each time
        found ^= found << np.uint64(step)
    carried = np.bitwise_xor.accumulate(found >> np.uint64(63)) ^ np.uint64(odd)
    before = np.concatenate([np.array([odd], "<u8"), carried[:-1]])
    found ^= np.uint64(0) - before  # all bits where the count before the word is odd
    return found
