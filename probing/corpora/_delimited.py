"""Tables as text with a header: cells by pyarrow, lines counted against rows, numbers told from codes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from probing.corpora._text import read_text
from probing.errors import BadParameter, CorpusError

QUOTING = ("none", "multiline")
_INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"  # 007 and longer digits stay strings: they are codes, not numbers
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$"
_LEADING_ZERO = r"^[+-]?0[0-9]"
_LARGEST_BLOCK = 2**31 - 1
_HEAD = 100  # rows that most columns of text show not to be numbers


@dataclass(frozen=True)
class Delimited:
    """A file's text and how its cells are told apart."""

    text: str
    separator: str
    quoting: str
    source: str

    @classmethod
    def read(cls, source: str, separator: str, quoting: str) -> Delimited:
        """The file, not yet cut.

        Raises:
            BadParameter: a separator of several characters, or an unknown quoting.
            CorpusError: not UTF-8, or empty.
        """
        if len(separator) != 1 or separator in '"\r\n':
            raise BadParameter("a separator is one character", needed="one character, e.g. ;", found=repr(separator))
        if quoting and quoting not in QUOTING:
            raise BadParameter(
                "unknown quoting", needed="none (quotation marks are text) or multiline (cells may hold line breaks)",
                found=repr(quoting), next_step="leave it out for a table whose cells are quoted where they need it",
            )  # fmt: skip
        return cls(read_text(source), separator, quoting, source)

    def table(self) -> tuple[Any, Sequence[int]]:
        """The cells of all rows as an Arrow table of strings, empty ones null; and the line of every row.

        Raises:
            CorpusError: a bad header, ragged lines, quotation marks that do not pair, or lines merged by them.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        header, body, first = self._header()
        if not body.strip("\r\n"):
            return pa.table({name: pa.array([], pa.string()) for name in header}), []
        quoted = self.quoting != "none" and '"' in body
        lines = self._counted(header, first) if quoted else self._lines(body, first)
        names = [str(place) for place in range(len(header))]
        data = body.encode()
        try:
            table = arrow_csv.read_csv(
                pa.py_buffer(data),
                arrow_csv.ReadOptions(column_names=names, block_size=min(len(data) + 1, _LARGEST_BLOCK)),
                arrow_csv.ParseOptions(
                    delimiter=self.separator, quote_char='"' if quoted else False, newlines_in_values=quoted
                ),
                arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
                ),
            ).rename_columns(header)
        except pa.ArrowException as error:
            self._counted(header, first)  # names the line
            raise CorpusError("malformed table", found=str(error)[:200], where=self.source) from None
        if len(lines) != len(table):
            raise CorpusError(
                "lines and rows do not agree", needed=f"{len(lines)} rows", found=f"{len(table)}", where=self.source,
                next_step="end every line in the same way, with \\n or \\r\\n",
            )  # fmt: skip
        return table, lines

    def _header(self) -> tuple[list[str], str, int]:
        """The names of the columns, the text below them, and the number of its first line.

        The first name may be missing: a DataFrame writes its index so.
        """
        buffer = io.StringIO(self.text, newline="")
        with self._reader(buffer, []) as reader:
            header: list[str] = next((row for row in reader if row), [])
            line = reader.line_num
        header = [name.strip() for name in header]
        self._check_separator(header)
        check_names(header[1:] if len(header) > 1 and not header[0] else header, self.source)
        return header, self.text[buffer.tell() :], line + 1

    def _check_separator(self, header: Sequence[str]) -> None:
        """A header of one cell that holds another usual separator was written with that one."""
        name = header[0] if len(header) == 1 else ""
        other = next((mark for mark in ";\t|," if mark in name and mark != self.separator), None)
        if other is not None:
            shown = "$'\\t'" if other == "\t" else f"'{other}'"
            raise CorpusError(
                f"the header has one cell, and {other!r} in it", needed=f"cells separated by {self.separator!r}",
                found=name[:80], where=f"{self.source}:1",
                next_step=f"read it with --reader-option separator={shown} (Python: separator={other!r})",
            )  # fmt: skip

    def _counted(self, header: Sequence[str], first: int) -> list[int]:
        """The line of every row below the header, each checked as it is cut.

        Raises:
            CorpusError: ragged lines, quotation marks that do not pair, or lines that they merge.
        """
        buffer, of_row = io.StringIO(self.text, newline=""), list[str]()

        def recorded() -> Iterator[str]:
            for line in buffer:
                of_row.append(line)
                yield line

        found: list[int] = []
        with self._reader(recorded(), of_row) as reader:
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
        """Rows of cells as Python's module cuts them, of any length; its complaints name the first line of the row."""
        longest = csv.field_size_limit(max(len(self.text), 131_072))
        reader = csv.reader(
            lines, delimiter=self.separator, strict=True,
            quoting=csv.QUOTE_NONE if self.quoting == "none" else csv.QUOTE_MINIMAL,
        )  # fmt: skip
        try:
            yield reader
        except csv.Error as error:
            raise CorpusError(
                "malformed table", needed="quoted cells closed, quotes doubled inside them", found=str(error),
                where=f"{self.source}:{reader.line_num - max(len(of_row), 1) + 1}",
                next_step=f"if quotation marks are part of the text: {_option('quoting', 'none')}",
            ) from None  # fmt: skip
        finally:
            csv.field_size_limit(longest)

    def _refuse_merged(self, lines: list[str], first: int, width: int) -> None:
        """Refuse a row of several lines each of which, its quotation marks taken as text, would be a row.

        A quoted cell of prose may hold line breaks and separators too; but behind a comma of prose is a space.
        """
        apart = [line.rstrip("\r\n").split(self.separator) for line in lines]
        is_spaced = f"{self.separator} " in self.text[: self.text.index("\n")] or self.separator == "\t"
        is_prose = not is_spaced and any(cell[:1] == " " for cells in apart for cell in cells[1:])
        if self.quoting == "multiline" or width < 2 or is_prose or any(len(cells) != width for cells in apart):
            return
        last = first + len(lines) - 1
        raise CorpusError(
            f"lines {first} to {last} would be one row", needed="one row a line, or a cell with line breaks",
            found=f"a quotation mark that opens in line {first} and closes in line {last}, "
            f"and {width} cells in each of these lines",
            where=f"{self.source}:{first}",
            next_step=f"if the quotation marks are part of the text: {_option('quoting', 'none')}; "
            f"if it is one cell with line breaks: {_option('quoting', 'multiline')}",
        )  # fmt: skip

    def _ragged(self, header: Sequence[str], found: int, line: int) -> CorpusError:
        step = f"put quotes around cells that hold the separator, or name another: {_option('separator', ';')}"
        if found < len(header):
            step = (
                "is the label cell missing? For a row without label leave the cell empty, and keep the separator "
                "before it"
            )
        return CorpusError(
            "a line with the wrong number of cells", needed=f"{len(header)}: {', '.join(header)}", found=str(found),
            where=f"{self.source}:{line}", next_step=step,
        )  # fmt: skip

    def _lines(self, body: str, first: int) -> Sequence[int]:
        """The lines of a body without quoted cells that are not empty."""
        if "\r" not in body and "\n\n" not in body and body[:1] != "\n":
            return range(first, first + body.count("\n") + (body[-1:] != "\n"))
        lines = io.StringIO(body, newline="")
        return [number for number, line in enumerate(lines, start=first) if line.strip("\r\n")]


def check_names(names: Sequence[str], source: str) -> None:
    """Refuse a column without a name, and one name twice.

    Raises:
        CorpusError: with what to do about it.
    """
    for name in names:
        if not name or names.count(name) > 1:
            raise CorpusError(
                "every column needs a name of its own", needed="a header line",
                found="a column without name" if not name else f"{name!r} twice", where=f"{source}:1",
                next_step="rename one of the two" if name else "name it in the header; a DataFrame's index is left out "
                "by DataFrame.to_csv(…, index=False), or named by index_label=",
            )  # fmt: skip


def numbers_of(cells: Any) -> Any:
    """A column of strings as whole numbers or as fractions where every cell that is not empty is one; else as it is."""
    import pyarrow as pa
    from pyarrow import compute

    def all_match(pattern: str) -> bool:
        for part in (cells.slice(0, _HEAD), cells):
            if compute.all(compute.match_substring_regex(part, pattern)).as_py() is False:
                return False
        return True

    if cells.null_count == len(cells):
        return cells
    if all_match(_INTEGER):
        return cells.cast(pa.int64())
    if all_match(_NUMBER) and not compute.any(compute.match_substring_regex(cells, _LEADING_ZERO)).as_py():
        return cells.cast(pa.float64())
    return cells


def is_numbering(cells: Any) -> bool:
    """Whether a column counts its rows as the index of a pandas DataFrame does: whole numbers, none of them twice."""
    pattern = re.compile(_INTEGER)
    values = cells.to_pylist()
    return all(value is not None and pattern.fullmatch(value) for value in values) and len(set(values)) == len(values)


def _option(name: str, value: str) -> str:
    return f"--reader-option {name}='{value}' (Python: {name}={value!r})"
