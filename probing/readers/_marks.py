"""Quotation marks and line breaks of a large table, looked for in its bytes: in pieces that fit into the processor's
cache, several at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]
_AT_ONCE = 2**20  # bytes; words of 64 bits are cut from a piece
_THREADS = 2  # more wait for the interpreter between numpy's calls
_QUOTE, _BREAKS = ord('"'), (ord("\n"), ord("\r"))


def count(data: Bytes, byte: int) -> int:
    """Return how often a byte occurs."""
    return sum(_pieces(data, lambda at: int(np.count_nonzero(data[at : at + _AT_ONCE] == byte))))


def holds(data: Bytes, byte: int) -> bool:
    """Return whether a byte occurs; no piece after the first that holds it is looked at."""
    return any((data[at : at + _AT_ONCE] == byte).any() for at in range(0, len(data), _AT_ONCE))


def extremes(data: Bytes) -> tuple[int, int]:
    """Return the lowest and the highest byte."""
    found = _pieces(data, lambda at: (int(data[at : at + _AT_ONCE].min()), int(data[at : at + _AT_ONCE].max())))
    return min(low for low, _ in found), max(high for _, high in found)


def has_plain_quotes(data: Bytes, separator: str) -> bool:
    """Return whether no quoted cell holds a line break, and every quotation mark opens, closes or is doubled in one.

    Of such marks each even one follows an edge of its cell or another mark, each odd one goes before.
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
