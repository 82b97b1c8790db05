"""Reads tables (CSV, TSV, Parquet, Arrow, Feather) with one row per sentence, a column `text` and columns of labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from probing.contracts.reader import CorpusReader
from probing.errors import CorpusError
from probing.readers._delimited import Delimited, check_names, is_numbering, numbers_of
from probing.readers._rows import Places, Rows, corpus_from_rows, row_options, usual_text
from probing.text.corpus import Corpus
from probing.text.example import composed
from probing.text.sources import check_file

_ROWS_AT_ONCE = 8192


class TableReader(CorpusReader):
    """Reads tables with a header: CSV, TSV, Parquet, Arrow and Feather.

    In CSV and TSV, an empty value is missing. A column (other than the text) becomes numeric if all its values that are
    not missing are numbers; all other values stay as written (`NA` and `null` are strings). If the first column has no
    name and numbers the rows, as `DataFrame.to_csv` writes it, it is left out.

    The options `text`, `words`, `id`, `document` and `split_column` name the columns that hold the text, its words, its
    id, its document and its split. `span.NAME` names the column that holds a substring of the text, or (as START:END)
    two columns that hold its offsets. `separator` is the separator of a CSV file; `quoting=none` reads quotation marks
    as text, and `quoting=multiline` allows quoted values of several lines even where these look like rows.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".parquet", ".arrow", ".feather")

    def read(self, source: str, *, split: str, **options: str) -> Corpus:
        """Read the table and return the corpus; each row of the table is an example.

        Args:
            source: path of the file.
            split: name of the split of all examples; "" means the split that each row names, or `train` if none is
                named.
            options: options of the class by name, as texts.

        Raises:
            CorpusError: the table is malformed, has lines of different lengths, lines that a quotation mark joins, or
                two columns with one name; the message names file and line.
            BadParameter: there is no such option.
        """
        chosen = row_options(options, "table", ("separator", "quoting"))
        rows = read_table(source, options)
        return corpus_from_rows(rows, split=split, options=chosen)


def read_table(source: str, options: Mapping[str, str]) -> Rows:
    """Return the rows of a table: for each row, a mapping from the names of columns to values (numbers, strings or
    lists). Python objects are made only when a row is reached. `options` are those of `TableReader`.

    Raises:
        CorpusError: see `TableReader.read`.
    """
    suffix = Path(source).suffix.lower()
    if suffix not in (".csv", ".tsv"):
        table = _columnar(source, suffix)
        return Rows(TableRows(table, source), Places(f"{source}, row ", range(1, len(table) + 1)), source)
    separator = options.get("separator", "\t" if suffix == ".tsv" else ",")
    table, lines = Delimited.read(source, separator, options.get("quoting", "")).table()
    table = _named(table, source)
    return Rows(TableRows(_typed(table, options), source), Places(f"{source}:", lines), source)


@dataclass(frozen=True)
class TableRows(Collection[Mapping[str, Any]]):
    """Iterates over the rows of an Arrow table; each row, a dict by name of the column, is made when it is reached.

    Attributes:
        table: the Arrow table.
        source: path of the file, for messages.
    """

    table: Any
    source: str

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        names = self.table.column_names
        for batch in self.table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            try:
                columns = [column.to_pylist() for column in batch.columns]
            except (ValueError, OverflowError) as error:
                raise _unsound(self.source, error) from None
            for values in zip(*columns, strict=True):
                yield dict(zip(names, values, strict=True))

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, value: object) -> bool:
        return any(value == row for row in self)


def _named(table: Any, source: str) -> Any:
    """Return the table without the column by which a DataFrame numbered its rows.

    Raises:
        CorpusError: another column without a name.
    """
    names = table.column_names
    if len(names) > 1 and not names[0] and is_numbering(table.column(0)):
        table = table.remove_column(0)
    check_names(table.column_names, source)
    return table


def _typed(table: Any, options: Mapping[str, str]) -> Any:
    """Return numbers where a column holds nothing else; the text, and words where they are named, as they are
    written.
    """
    import pyarrow as pa

    with ThreadPoolExecutor() as pool:  # pyarrow computes without the interpreter's lock
        typed = dict(zip(table.column_names, pool.map(numbers_of, table.columns), strict=True))
    texts = [composed(options.get(role, "")) for role in ("text", "words")]
    texts[0] = texts[0] or _text_of(typed, table)
    return pa.table({n: table.column(n) if composed(n) in texts else column for n, column in typed.items()})


def _text_of(typed: Mapping[str, Any], table: Any) -> str:
    """Return the column called as the text usually is: of several, the first that holds more than numbers."""
    usual = usual_text(typed)
    return next((name for name in usual if typed[name].type == table.column(name).type), usual[0] if usual else "")


def _columnar(source: str, suffix: str) -> Any:
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
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _unsound(source, error) from None
    return checked(table, source)


def checked(table: Any, source: str) -> Any:
    """Check that the columns of an Arrow table have distinct names and no infinite numbers, and return the table.
    `source` names the file in messages.

    Raises:
        CorpusError: a name is missing or occurs twice, or a column contains an infinite number.
    """
    check_names(table.column_names, source)
    _refuse_infinite(table, source)
    return table


def _refuse_infinite(table: Any, source: str) -> None:
    """Refuse infinite numbers, as in JSON: as a missing value they would vanish."""
    import pyarrow as pa
    from pyarrow import compute

    for name, column in zip(table.column_names, table.columns, strict=True):
        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        values = compute.list_flatten(column) if is_list else column
        if pa.types.is_floating(values.type) and compute.any(compute.is_inf(values.cast(pa.float64()))).as_py():
            raise CorpusError(
                f"the column {name!r} holds a number that is not finite",
                needed="finite numbers, or missing values",
                found="inf",
                where=source,
                next_step="leave the value out or correct it",
            )


def _unsound(source: str, error: Exception) -> CorpusError:
    suffix = Path(source).suffix.lower()
    return CorpusError(
        f"not a sound {suffix} file", needed=f"a {suffix.removeprefix('.')} table", found=str(error)[:200], where=source
    )


def _arrow(source: str) -> Any:
    """Read the file format, else the stream format that `datasets` writes."""
    import pyarrow as pa

    with pa.OSFile(source) as file:
        if file.read(6) == b"ARROW1":
            file.seek(0)
            return pa.ipc.open_file(file).read_all()
        file.seek(0)
        return pa.ipc.open_stream(file).read_all()


MEMBER = TableReader
