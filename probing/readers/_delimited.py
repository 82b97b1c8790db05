"""Tables as text with a header: pyarrow cuts the cells, lines are counted against rows, and numbers are told from
codes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from probing.errors import BadParameter, CorpusError
from probing.readers._text import Bytes, count, has_plain_quotes, holds, read_utf8

QUOTING = ("none", "multiline")
_INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"  # 007 and longer digits stay strings: they are codes, not numbers
# More digits before the point than a float has would make one number of two codes.
_NUMBER = r"^[+-]?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$"
_BLOCKS = (2**20, 2**31 - 1)  # bytes that are cut at once: the second where a row is longer than the first
_LEAST_CODE = 10**18  # longer digits are codes
_LEAST_INEXACT = 1e15
_HEAD = 100  # rows that most columns of text show not to be numbers


@dataclass(frozen=True)
class Delimited:
    """Holds the bytes of a delimited text file (UTF-8), with its separator and quoting."""

    data: Bytes
    separator: str
    quoting: str
    source: str

    @classmethod
    def read(cls, source: str, separator: str, quoting: str) -> Delimited:
        """Read a file and return it with its settings; cells are not yet parsed.

        Raises:
            BadParameter: the separator is not one ASCII character, or the quoting is unknown.
            CorpusError: the file is not UTF-8, or is empty.
        """
        if len(separator) != 1 or separator in '"\r\n' or not separator.isascii():
            raise BadParameter(
                "a separator is one character of ASCII", needed="one character, e.g. ;", found=repr(separator)
            )
        if quoting and quoting not in QUOTING:
            raise BadParameter(
                "unknown quoting",
                needed="none (quotation marks are text) or multiline (cells may hold line breaks)",
                found=repr(quoting),
                next_step="leave it out for a table whose cells are quoted where they need it",
            )
        return cls(read_utf8(source), separator, quoting, source)

    def table(self) -> tuple[Any, Sequence[int]]:
        """Return the cells as an Arrow table of strings (empty cells are null), and the line number of every row.

        Raises:
            CorpusError: the header is malformed, rows have different numbers of cells, or quotation marks are unpaired
                or merge lines.
        """
        import pyarrow as pa

        header, begin, first = self._header()
        body = self.data[begin:]
        if not body[:4096].tobytes().strip(b"\r\n") and not body.tobytes().strip(b"\r\n"):
            return pa.table({name: pa.array([], pa.string()) for name in header}), []
        quoted = self.quoting != "none" and holds(body, ord('"'))
        plain = not quoted or has_plain_quotes(body, self.separator)
        lines: Sequence[int] = [] if plain else self._counted(header, first)
        try:
            table = self._cells(body, len(header), quoted=quoted, breaks_in_cells=not plain).rename_columns(header)
        except pa.ArrowException as error:
            self._counted(header, first)  # names the line
            raise CorpusError("malformed table", found=str(error)[:200], where=self.source) from None
        if plain:
            n_lines = count(body, ord("\n")) + int(body[-1] != ord("\n"))
            lines = range(first, first + n_lines) if n_lines == len(table) else self._counted(header, first)
        if len(lines) != len(table):
            raise CorpusError(
                "lines and rows do not agree",
                needed=f"{len(lines)} rows",
                found=f"{len(table)}",
                where=self.source,
                next_step="end every line in the same way, with \\n or \\r\\n",
            )
        return table, lines

    def _cells(self, body: Bytes, width: int, *, quoted: bool, breaks_in_cells: bool) -> Any:
        """Cut all cells by pyarrow, which refuses ragged lines."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        names = [str(place) for place in range(width)]
        parsing = arrow_csv.ParseOptions(
            delimiter=self.separator, quote_char='"' if quoted else False, newlines_in_values=breaks_in_cells
        )
        converting = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            check_utf8=False,  # the whole file was
        )
        for block in _BLOCKS:
            reading = arrow_csv.ReadOptions(column_names=names, block_size=min(len(body) + 1, block))
            try:
                return arrow_csv.read_csv(pa.py_buffer(body), reading, parsing, converting)
            except pa.ArrowException:
                if block == _BLOCKS[-1]:
                    raise
        raise AssertionError

    def _text_lines(self) -> Iterator[str]:
        """Return the lines with their ends, decoded one after the other."""
        import pyarrow as pa

        return iter(io.TextIOWrapper(pa.BufferReader(pa.py_buffer(self.data)), encoding="utf-8", newline=""))

    def _header(self) -> tuple[list[str], int, int]:
        """Return the names of the columns, where the rows below begin in the data, and the number of their first line.

        The first name may be missing: a DataFrame writes its index so.
        """
        above: list[str] = []
        with self._reader(_recorded(self._text_lines(), above), above) as reader:
            header: list[str] = next((row for row in reader if row), [])
            line = reader.line_num
        header = [name.strip() for name in header]
        self._refuse_spreadsheet_line(above)
        self._check_separator(header)
        check_names(header[1:] if len(header) > 1 and not header[0] else header, self.source)
        return header, len("".join(above).encode()), line + 1

    def _refuse_spreadsheet_line(self, above: Sequence[str]) -> None:
        """Refuse a first line such as `sep=;`, which names the separator for spreadsheets."""
        found = re.match(r"sep=(.)\s*$", above[0]) if above else None
        if found:
            raise CorpusError(
                "the first line is not the header, but says what separates cells",
                needed="the names of the columns",
                found=above[0].strip(),
                where=f"{self.source}:1",
                next_step=f"delete the line, and read the file with {_option('separator', found[1])}",
            )

    def _check_separator(self, header: Sequence[str]) -> None:
        """Refuse a header of one cell that holds another usual separator: the file was written with that one."""
        name = header[0] if len(header) == 1 else ""
        other = next((mark for mark in ";\t|," if mark in name and mark != self.separator), None)
        if other is not None:
            shown = "$'\\t'" if other == "\t" else f"'{other}'"
            raise CorpusError(
                f"the header has one cell, and {other!r} in it",
                needed=f"cells separated by {self.separator!r}",
                found=name[:80],
                where=f"{self.source}:1",
                next_step=f"read it with --reader-option separator={shown} (Python: separator={other!r})",
            )

    def _counted(self, header: Sequence[str], first: int) -> list[int]:
        """Return the line of every row below the header, each checked as it is cut.

        Raises:
            CorpusError: ragged lines, quotation marks that do not pair, or lines that they merge.
        """
        of_row: list[str] = []
        found: list[int] = []
        with self._reader(_recorded(self._text_lines(), of_row), of_row) as reader:
            for row in reader:
                line = reader.line_num - len(of_row) + 1
                if row and line >= first:
                    if len(of_row) > 1:
                        self._refuse_merged(of_row, line, len(header))
                    if len(row) != len(header):
                        raise self._ragged(header, len(row), line)
                    found.append(line)
                of_row.clear()
        return found

    @contextmanager
    def _reader(self, lines: Iterator[str], of_row: Sequence[str]) -> Iterator[Any]:
        """Yield rows of cells as Python's module cuts them, of any length; its complaints name the first line of the
        row.
        """
        longest = csv.field_size_limit(max(len(self.data), 131_072))
        reader = csv.reader(
            lines,
            delimiter=self.separator,
            strict=True,
            quoting=csv.QUOTE_NONE if self.quoting == "none" else csv.QUOTE_MINIMAL,
        )
        try:
            yield reader
        except csv.Error as error:
            raise CorpusError(
                "malformed table",
                needed="quoted cells closed, quotes doubled inside them",
                found=str(error),
                where=f"{self.source}:{reader.line_num - max(len(of_row), 1) + 1}",
                next_step=f"if quotation marks are part of the text: {_option('quoting', 'none')}",
            ) from None
        finally:
            csv.field_size_limit(longest)

    def _refuse_merged(self, lines: list[str], first: int, width: int) -> None:
        """Refuse a row of several lines each of which, its quotation marks taken as text, would be a row.

        A quoted cell of prose may hold line breaks and separators too; but behind a comma of prose is a space.
        """
        apart = [line.rstrip("\r\n").split(self.separator) for line in lines]
        head = self.data[: 2**16].tobytes().partition(b"\n")[0]
        is_spaced = self.separator == "\t" or f"{self.separator} ".encode() in head
        is_prose = not is_spaced and any(cell[:1] == " " for cells in apart for cell in cells[1:])
        if self.quoting == "multiline" or width < 2 or is_prose or any(len(cells) != width for cells in apart):
            return
        last = first + len(lines) - 1
        raise CorpusError(
            f"lines {first} to {last} would be one row",
            needed="one row a line, or a cell with line breaks",
            found=f"a quotation mark that opens in line {first} and closes in line {last}, "
            f"and {width} cells in each of these lines",
            where=f"{self.source}:{first}",
            next_step=f"if the quotation marks are part of the text: {_option('quoting', 'none')}; "
            f"if it is one cell with line breaks: {_option('quoting', 'multiline')}",
        )

    def _ragged(self, header: Sequence[str], found: int, line: int) -> CorpusError:
        step = f"put quotes around cells that hold the separator, or name another: {_option('separator', ';')}"
        if found < len(header):
            step = (
                "is the label cell missing? For a row without label leave the cell empty, and keep the separator "
                "before it"
            )
        return CorpusError(
            "a line with the wrong number of cells",
            needed=f"{len(header)}: {', '.join(header)}",
            found=str(found),
            where=f"{self.source}:{line}",
            next_step=step,
        )


def _recorded(lines: Iterator[str], record: list[str]) -> Iterator[str]:
    """Yield the lines, each noted as it is taken."""
    for line in lines:
        record.append(line)
        yield line


def check_names(names: Sequence[str], source: str) -> None:
    """Refuse a column without a name, and a name that occurs twice.

    Raises:
        CorpusError: a name is missing or occurs twice; the message names the next step.
    """
    for name in names:
        if not name or names.count(name) > 1:
            raise CorpusError(
                "every column needs a name of its own",
                needed="a header line",
                found="a column without name" if not name else f"{name!r} twice",
                where=f"{source}:1",
                next_step="rename one of the two"
                if name
                else "name it in the header; a DataFrame's index is left out "
                "by DataFrame.to_csv(…, index=False), or named by index_label=",
            )


def numbers_of(cells: Any) -> Any:
    """Return a column of strings converted to int64 or float64 if every cell that is not empty is a number; else
    unchanged.
    """
    import pyarrow as pa
    from pyarrow import compute

    if cells.null_count == len(cells):
        return cells
    plain = _plain_numbers(cells)
    if plain is not None:
        return plain
    for pattern, kind in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64())):
        for part in (cells.slice(0, _HEAD), cells):
            if compute.all(compute.match_substring_regex(part, pattern)).as_py() is False:
                break
        else:
            return cells.cast(kind)
    return cells


def _plain_numbers(cells: Any) -> Any:
    """Return the numbers of a column where it is clear without a pattern that each cell is a number, which takes a
    tenth of the time.
    """
    import pyarrow as pa
    from pyarrow import compute

    for kind, reach in ((pa.int64(), _LEAST_CODE), (pa.float64(), _LEAST_INEXACT)):
        try:
            cells.slice(0, _HEAD).cast(kind)
            values = cells.cast(kind)
        except pa.ArrowInvalid:
            continue
        in_reach = compute.all(compute.less(compute.abs(values), reach)).as_py()  # false of what is not finite
        return values if in_reach and not any(map(_is_doubtful, cells.chunks)) else None
    return None


def _is_doubtful(cells: Any) -> bool:
    """Return whether a number may be spelled with an exponent, as hexadecimal, with a plus, or with zeros before
    digits.
    """
    _, offsets, data = cells.buffers()
    if data is None or not len(cells):
        return False
    ends = np.frombuffer(offsets, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    spelled = bytes(memoryview(data)[ends[0] : ends[-1]]) + b"   "  # so that every cell has three characters
    if any(mark in spelled for mark in (b"e", b"E", b"x", b"X", b"+")):
        return True
    marks, lengths = np.frombuffer(spelled, np.uint8), np.diff(ends)
    first, second, third = (marks[ends[:-1] - ends[0] + place] for place in range(3))
    signed = first == ord("-")
    digit, after = np.where(signed, second, first), np.where(signed, third, second)
    return bool(((digit == ord("0")) & (lengths > 1 + signed) & (after != ord("."))).any())


def is_numbering(cells: Any) -> bool:
    """Return whether a column could be the index of a DataFrame: distinct whole numbers without missing cells."""
    pattern = re.compile(_INTEGER)
    values = cells.to_pylist()
    return all(value is not None and pattern.fullmatch(value) for value in values) and len(set(values)) == len(values)


def _option(name: str, value: str) -> str:
    return f"--reader-option {name}='{value}' (Python: {name}={value!r})"
