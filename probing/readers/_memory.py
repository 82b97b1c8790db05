"""Corpora of rows in memory: texts with columns, and DataFrames; by the rules of the files that hold such rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probing.errors import CorpusError
from probing.readers._rows import Places, Rows, corpus_from_rows, row_options
from probing.readers.table import TableRows, checked
from probing.text.corpus import Corpus
from probing.text.sources import split_name, split_order


def corpus_of_texts(
    texts: Sequence[Any], columns: Mapping[str, Sequence[Any]], name: str, options: Mapping[str, str]
) -> Corpus:
    """Return a corpus made of texts, or of lists of words, and of columns with one value per text.

    Raises:
        CorpusError: a column has another length than the texts, or rows are malformed.
        BadParameter: an option is unknown.
    """
    chosen = row_options(options, "JSONL")
    if isinstance(texts, str) or not _is_sequence(texts) or not len(texts):
        raise CorpusError(
            "no texts were given",
            needed="a list of texts, or of lists of words",
            found="one string" if isinstance(texts, str) else "none" if _is_sequence(texts) else type(texts).__name__,
            where=name,
        )
    if not isinstance(columns, Mapping):
        raise CorpusError(
            "the columns have no names",
            needed="a mapping of names to values",
            found=type(columns).__name__,
            where=name,
            next_step="of a DataFrame: Corpus.from_dataframe(frame)",
        )
    role = "words" if all(isinstance(text, list | tuple) for text in texts) else "text"
    for column, values in columns.items():
        if isinstance(values, str) or not _is_sequence(values) or len(values) != len(texts) or column == role:
            raise CorpusError(
                f"the column {column!r} does not fit the texts",
                needed=f"{len(texts):,} values, one for each text",
                found=_unfit(column, role, values),
                where=name,
            )
    given = {role: texts, **columns}
    rows = [
        {str(column): _plain(value, name) for column, value in zip(given, values, strict=True)}
        for values in zip(*given.values(), strict=True)
    ]
    return corpus_from_rows(Rows(rows, Places(f"{name}:", range(1, len(rows) + 1)), name), split="", options=chosen)


def _is_sequence(values: Any) -> bool:
    """Return whether values can be counted and gone through again, as generators and None cannot."""
    return hasattr(values, "__len__") and hasattr(values, "__iter__")


def _unfit(column: str, role: str, values: Any) -> str:
    if column == role:
        return "the name of the texts themselves"
    return f"{len(values):,}" if _is_sequence(values) and not isinstance(values, str) else type(values).__name__


def _plain(value: Any, source: str) -> Any:
    """Return a value as JSON would hold it: NaN and NaT are missing, arrays, tensors and tuples are lists.

    Raises:
        CorpusError: it is an infinite number, which as a missing value would vanish.
    """
    if isinstance(value, np.generic):
        value = None if isinstance(value, np.datetime64 | np.timedelta64) and np.isnat(value) else value.item()
    elif hasattr(value, "detach"):  # a tensor, or one number of it
        value = value.detach().cpu().tolist()
    elif type(value).__name__ in ("NaTType", "NAType"):  # of pandas, which need not be loaded
        return None
    if isinstance(value, complex):
        raise _complex(source)
    if isinstance(value, np.ndarray | tuple | list):
        return [_plain(item, source) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, source) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        if math.isinf(value):
            raise CorpusError("a number that is not finite", needed="finite numbers", found=str(value), where=source)
        return None
    return value


def _complex(source: str) -> CorpusError:
    return CorpusError(
        "complex numbers",
        needed="real numbers or names",
        found="values of type complex",
        where=source,
        next_step="give a real number of each: its real or its imaginary part, or its absolute value",
    )


def corpora_of_frames(frame: Any, name: str, options: Mapping[str, str]) -> list[Corpus]:
    """Return the corpus of a DataFrame, or the corpora of `{split: DataFrame}` in split order.

    Raises:
        CorpusError: an object is not a DataFrame, cannot be written as Parquet, or has malformed rows.
        BadParameter: an option is unknown.
    """
    chosen = row_options(options, "table")
    if not isinstance(frame, Mapping):
        return [corpus_from_rows(_frame_rows(frame, name), split="", options=chosen)]
    named = sorted(
        ((split_name(str(split)), one) for split, one in frame.items()), key=lambda pair: split_order(pair[0])
    )
    splits = [split for split, _ in named]
    if len(set(splits)) < len(splits) or not splits:
        raise CorpusError(
            "splits that cannot be told apart" if splits else "no DataFrame was given",
            needed="one DataFrame a split",
            found=", ".join(map(str, frame)) or "nothing",
            where=name,
        )
    return [
        corpus_from_rows(_frame_rows(one, name if len(named) == 1 else f"{name} {split}"), split=split, options=chosen)
        for split, one in named
    ]


def _frame_rows(frame: Any, name: str) -> Rows:
    import pandas as pd
    import pyarrow as pa

    if not isinstance(frame, pd.DataFrame):
        raise CorpusError("this is no DataFrame", needed="a pandas DataFrame", found=type(frame).__name__, where=name)
    renamed = frame.set_axis([str(column) for column in frame.columns], axis=1)
    if not renamed.columns.is_unique:
        twice = renamed.columns[renamed.columns.duplicated()][0]
        raise CorpusError("every column needs a name of its own", needed="every name once", found=f"{twice!r} twice")
    try:
        table = pa.Table.from_pandas(renamed, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        if "complex" in str(error):
            raise _complex(name) from None
        raise CorpusError(
            "a column holds values of several kinds",
            needed="one kind of values a column, or missing ones",
            found=str(error)[:200],
            where=name,
            next_step="convert it, e.g. frame[column].astype(str)",
        ) from None
    table = checked(table, name)
    return Rows(TableRows(table, name), Places(f"{name}, row ", range(1, len(table) + 1)), name)
