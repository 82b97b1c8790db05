"""Reads and scans the text of a corpus file (UTF-8, no NUL, not empty), and checks options that readers share."""

from __future__ import annotations

import codecs
import os
import shlex
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from probing.errors import BadParameter, CorpusError, unknown_name
from probing.text.sources import check_file

T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]
_AT_ONCE = 2**20  # bytes; words of 64 bits are cut from a piece
_THREADS = 2  # more wait for the interpreter between numpy's calls
_QUOTE, _BREAKS = ord('"'), (ord("\n"), ord("\r"))
_NO_TEXT = {
    b"\x1f\x8b": ("a gzip archive", "unpack it with gunzip"),
    b"PK\x03\x04": ("a zip archive, as spreadsheets are", "unpack it, or save the sheet as CSV in UTF-8"),
    b"BZh": ("a bzip2 archive", "unpack it with bunzip2"),
    b"\xfd7zXZ": ("an xz archive", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard archive", "unpack it with unzstd"),
    b"PAR1": ("a Parquet file", "name it .parquet"),
    b"ARROW1": ("an Arrow file", "name it .arrow"),
}


def read_text(source: str) -> str:
    """Return the whole text of a file, without a byte order mark.

    Raises:
        CorpusError: see `read_utf8`.
    """
    return str(read_utf8(source).data, "utf-8")


def read_utf8(source: str) -> Bytes:
    """Return the bytes of a text file in UTF-8, without a byte order mark.

    Raises:
        CorpusError: the file is missing, unreadable, empty, not UTF-8, or contains NUL; the message names file and
            line.
    """
    check_file(source)
    try:
        data = _read(source)
    except OSError as error:
        raise CorpusError("the corpus file cannot be read", found=str(error), where=source) from error
    begin = data[:8].tobytes()
    if begin.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
    for mark, (kind, step) in _NO_TEXT.items():
        if begin.startswith(mark):
            raise CorpusError(
                "the corpus file is no text", needed="text in UTF-8", found=kind, where=source, next_step=step
            )
    if begin.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise _wrong_encoding(source, "UTF-32", "a byte order mark of UTF-32", 1)
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _wrong_encoding(source, "UTF-16", "a byte order mark of UTF-16", 1)
    if not data.size or (data[:4096].tobytes().isspace() and data.tobytes().isspace()):
        raise CorpusError("the corpus file is empty", needed="at least one example", where=source)
    lowest, highest = extremes(data)
    if highest >= 0x80 or lowest == 0:
        _refuse_other_text(data.tobytes(), source)
    return data


def _read(source: str) -> Bytes:
    """Return the bytes of a file: in an array, whose large pages of memory are filled in half the time."""
    with Path(source).open("rb", buffering=0) as file:
        data = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
        filled = 0
        while filled < len(data) and (n := file.readinto(data[filled:].data)):
            filled += n
    return data[:filled]


def _refuse_other_text(data: bytes, source: str) -> None:
    """Refuse bytes that are not UTF-8, and NUL characters."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong_encoding(source, _encoding_of(data), f"byte 0x{data[error.start]:02x}", line) from None
    if b"\0" in data:
        if _encoding_of(data):
            raise _wrong_encoding(source, _encoding_of(data), "every other byte 0", 1)
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise CorpusError(
            "the corpus file holds a NUL character",
            needed="plain text",
            where=f"{source}:{line}",
            next_step=f"take it out, e.g. with: tr -d '\\000' < {shlex.quote(source)} > {_beside(source)}",
        )


def _encoding_of(data: bytes) -> str:
    """Return the likeliest encoding of bytes that are not UTF-8; "" where all but few are UTF-8."""
    zeros = [data[start:100_000:2].count(0) for start in (0, 1)]
    if 4 * max(zeros) > len(data[:100_000:2]):
        return "UTF-16LE" if zeros[1] > zeros[0] else "UTF-16BE"
    text = data.decode("utf-8", errors="replace")
    beyond = sum(not character.isascii() for character in text)
    if b"\0" in data or 2 * text.count("\ufffd") < beyond:
        return ""
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "LATIN1"
    return "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in data) else "LATIN1"


def _wrong_encoding(source: str, encoding: str, found: str, line: int) -> CorpusError:
    step = "correct the bytes that are no UTF-8 there: the rest of the file is"
    if encoding:
        step = f"convert it, e.g. with: iconv -f {encoding} -t UTF-8 {shlex.quote(source)} > {_beside(source)}"
    return CorpusError(
        "the corpus file is not UTF-8 text", needed="UTF-8", found=found, where=f"{source}:{line}", next_step=step
    )


def _beside(source: str) -> str:
    """Return a new file's name beside the source, for a shell."""
    path = Path(source)
    return shlex.quote(str(path.with_name(f"{path.stem}.utf8{path.suffix}")))


def check_options(options: Iterable[str], known: Iterable[str], reader: str) -> None:
    """Refuse options that a reader does not have.

    Raises:
        BadParameter: an option is unknown; the message names the nearest.
    """
    for name in options:
        if name not in known:
            raise unknown_name(f"option of the {reader} reader", name, known, error=BadParameter)


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
