"""Reads Hugging Face data sets with a text column and label columns: `hub:NAME` or `hub:NAME:CONFIG`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from probing.contracts.reader import CorpusReader
from probing.errors import CorpusError, unknown_name
from probing.readers._rows import Places, Rows, corpus_from_rows, row_options
from probing.text.corpus import Corpus, joined
from probing.text.sources import split_name, split_order


class HubReader(CorpusReader):
    """Reads a data set through the library `datasets`; code that comes with a data set is never run.

    `hub:nyu-mll/glue:sst2` names the data set `nyu-mll/glue` and its configuration `sst2`; a local folder of data files
    can be named, too. Splits are the data set's own (`validation` is `dev`). Class labels become their names.

    The options `text`, `words`, `id`, `document` and `split_column` name the columns that hold the text, its words, its
    id, its document and its split; `revision` is a commit, tag or branch of the data set.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    def read(self, source: str, *, split: str, **options: str) -> Corpus:
        """Read one split of the data set, or all, and return the corpus; each row of the data set is an example.

        Args:
            source: name of the data set, or `NAME:CONFIG`.
            split: name of the split to read; "" means all splits.
            options: options of the class by name, as texts.

        Raises:
            CorpusError: the data set cannot be loaded, or has no such split.
            BadParameter: there is no such option.
        """
        chosen = row_options(options, "hub", ("revision",))
        tables = _tables(source, options.get("revision"))
        if split and split not in tables:
            raise unknown_name("split of the data set", split, tables, where=f"hub:{source}", error=CorpusError)
        wanted = [split] if split else sorted(tables, key=split_order)
        parts = [_part(tables[name], name, source, f"hub:{source}, {name} row ", chosen) for name in wanted]
        return joined(parts, f"hub:{source}")


def _part(table: Any, split: str, source: str, place: str, options: Mapping[str, str]) -> Corpus:
    values = _rows(table)
    places = Places(place, range(1, len(values) + 1))
    return corpus_from_rows(Rows(values, places, source), split=split, options=options)


def corpora_of_dataset(data: Any, name: str, options: Mapping[str, str]) -> list[Corpus]:
    """Return a list of the corpus of a `datasets.Dataset`, or of the corpora of a `DatasetDict`, one per split (train,
    dev, test, then others). `name` names the data set in messages; `options` are those of `HubReader`.

    Raises:
        CorpusError: `data` is neither of these, reads its rows as a stream, or has one split twice (such as `dev` and
            `validation`).
        BadParameter: an option is unknown.
    """
    chosen = row_options(options, "hub")
    tables = _by_split(data, name) if isinstance(data, Mapping) else {"": data}
    for one in tables.values():
        if not all(hasattr(one, wanted) for wanted in ("features", "select_columns", "__len__")):
            raise CorpusError(
                "this is no data set in memory",
                needed="a datasets.Dataset, or a DatasetDict of them",
                found=type(one).__name__,
                where=name,
                next_step="of a stream, take the rows: datasets.Dataset.from_list(list(stream.take(1000)))",
            )
    return [
        _part(tables[split], split, name, f"{name}, {split} row ".replace(",  row", ", row"), chosen)
        for split in sorted(tables, key=split_order)
    ]


def _tables(source: str, revision: str | None) -> dict[str, Any]:
    """Return the data set's tables by split name."""
    name, _, config = source.partition(":")
    try:
        loaded = importlib.import_module("datasets").load_dataset(name, config or None, revision=revision)
    except Exception as error:  # the library raises a dozen kinds; a user needs one
        raise CorpusError(
            f"data set {name!r} cannot be had",
            needed="a data set of the hub, or a local folder of data files",
            found=f"{type(error).__name__}: {error}"[:300],
            where=f"hub:{source}",
            next_step="check name, configuration (hub:NAME:CONFIG) and connection; offline, download it first",
        ) from error
    return _by_split(loaded, f"hub:{source}")


def _by_split(tables: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return tables by `train`, `dev` and `test` for the usual spellings of these splits.

    Raises:
        CorpusError: two of them are one split: one would take the place of the other.
    """
    named = {split_name(str(split)): table for split, table in tables.items()}
    if len(named) < len(tables):
        raise CorpusError(
            "splits that cannot be told apart",
            needed="one table a split",
            found=", ".join(map(str, tables)),
            where=where,
            next_step="rename one of them, or join them (datasets.concatenate_datasets)",
        )
    return named


def _rows(table: Any) -> list[dict[str, Any]]:
    """Return rows with class labels as names; columns that are no plain values (images, audio) are left out."""
    plain = [name for name, feature in table.features.items() if _is_plain(feature)]
    table = table.select_columns(plain).with_format(None)  # a format such as "torch" would give tensors
    names = {name: found for name in plain if (found := _class_names(table.features[name]))}
    return [{key: _decoded(value, names.get(key)) for key, value in row.items()} for row in table]


def _is_plain(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)
    return type(inner).__name__ in ("Value", "ClassLabel")


def _class_names(feature: Any) -> list[str] | None:
    inner = getattr(feature, "feature", feature)
    return list(inner.names) if type(inner).__name__ == "ClassLabel" else None


def _decoded(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, Iterable):
        return [_decoded(item, names) for item in value]
    return names[value] if 0 <= value < len(names) else None


MEMBER = HubReader
