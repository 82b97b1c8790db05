"""Tables (CSV, TSV, Parquet, Arrow, Feather): one row a sentence, a column `text` and label columns."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any, ClassVar

from probing.contracts import CorpusReader
from probing.corpora._rows import Rows, corpus_from_rows, row_options
from probing.corpora._text import read_text
from probing.corpus import Corpus
from probing.errors import BadParameter, CorpusError
from probing.sources import check_file

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # 007 and longer digits stay strings: they are codes, not numbers
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_LEADING_ZERO = re.compile(r"[+-]?0[0-9]")


class TableReader(CorpusReader):
    """Reads tables with a header.

    In CSV and TSV an empty cell is a missing value; a column whose every other cell is a number becomes numbers;
    everything else stays as written (`NA` and `null` are strings).

    Options: `text`, `words`, `id`, `document`, `split_column` name columns; `span.NAME` names the
    column of a substring, or START:END those of two offsets; `separator` is a CSV file's.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".parquet", ".arrow", ".feather")

    def read(self, source: str, *, split: str, **options: str) -> Corpus:
        """All rows of the file.

        Raises:
            CorpusError: a malformed table, ragged lines, columns named twice; with file and line.
        """
        chosen = row_options(options, "table", ("separator",))
        suffix = Path(source).suffix.lower()
        if suffix in (".csv", ".tsv"):
            rows = _delimited(source, options.get("separator", "\t" if suffix == ".tsv" else ","))
        else:
            values = _columnar(source, suffix)
            rows = Rows(values, [f"{source}, row {number}" for number in range(1, len(values) + 1)], source)
        return corpus_from_rows(rows, split=split, options=chosen)


def _delimited(source: str, separator: str) -> Rows:
    if len(separator) != 1 or separator in '"\r\n':
        raise BadParameter("a separator is one character", needed="one character, e.g. ;", found=repr(separator))
    reader = csv.reader(io.StringIO(read_text(source), newline=""), delimiter=separator, strict=True)
    cells: list[list[str]] = []
    lines: list[int] = []
    try:
        header = [name.strip() for name in next(reader)]
        before = reader.line_num
        for row in reader:
            if row:
                cells.append(row)
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise CorpusError(
            "malformed table", needed="quoted cells closed, quotes doubled inside them", found=str(error),
            where=f"{source}:{reader.line_num}",
        ) from None  # fmt: skip
    _check_header(header, source)
    _check_separator(header, separator, source)
    for row, line in zip(cells, lines, strict=True):
        if len(row) != len(header):
            raise CorpusError(
                "a line with the wrong number of cells", needed=f"{len(header)}: {', '.join(header)}",
                found=str(len(row)), where=f"{source}:{line}",
                next_step=_cells_step(len(row), len(header)),
            )  # fmt: skip
    columns = [_typed(list(column)) for column in zip(*cells, strict=True)]
    values = [dict(zip(header, row, strict=True)) for row in zip(*columns, strict=True)]
    return Rows(values, [f"{source}:{line}" for line in lines], source)


def _cells_step(found: int, needed: int) -> str:
    if found < needed:
        return (
            "is the label cell missing? For a row without label leave the cell empty, and keep the separator before it"
        )
    return "put quotes around cells that hold the separator, or name another: --reader-option separator=';'"


def _check_separator(header: list[str], separator: str, source: str) -> None:
    """A header of one cell that holds another usual separator was written with that one."""
    other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0] and mark != separator), None)
    if other is not None:
        shown = "$'\\t'" if other == "\t" else f"'{other}'"
        raise CorpusError(
            f"the header has one cell, and {other!r} in it", needed=f"cells separated by {separator!r}",
            found=header[0][:80], where=f"{source}:1",
            next_step=f"read it with --reader-option separator={shown} (Python: separator={other!r})",
        )  # fmt: skip


def _check_header(header: list[str], source: str) -> None:
    for name in header:
        if not name or header.count(name) > 1:
            raise CorpusError(
                "every column needs a name of its own", needed="a header line",
                found="a column without name" if not name else f"{name!r} twice", where=f"{source}:1",
            )  # fmt: skip


def _typed(cells: list[str]) -> list[Any]:
    filled = [cell for cell in cells if cell]
    if filled and all(_INTEGER.fullmatch(cell) for cell in filled):
        return [int(cell) if cell else None for cell in cells]
    if filled and all(_NUMBER.fullmatch(cell) and not _LEADING_ZERO.match(cell) for cell in filled):
        return [float(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _columnar(source: str, suffix: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import feather, parquet

    check_file(source)
    try:
        if suffix == ".parquet":
            table = parquet.ParquetFile(source).read()
        elif suffix == ".feather":
            table = feather.read_table(source, memory_map=False)
        else:
            table = _arrow(source)
        table.validate(full=True)
        _check_header(table.column_names, source)
        values: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(
            f"not a sound {suffix} file", needed=f"a {suffix.removeprefix('.')} table", found=str(error)[:200],
            where=source,
        ) from None  # fmt: skip
    return values


def _arrow(source: str) -> Any:
    """The file format, else the stream format that `datasets` writes."""
    import pyarrow as pa

    with pa.OSFile(source) as file:
        if file.read(6) == b"ARROW1":
            file.seek(0)
            return pa.ipc.open_file(file).read_all()
        file.seek(0)
        return pa.ipc.open_stream(file).read_all()


MEMBER = TableReader
