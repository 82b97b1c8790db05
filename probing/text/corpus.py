"""Defines `Corpus`, an ordered sequence of examples: texts with words, labels, splits and groups, for any model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, overload

from probing import registry
from probing.errors import BadParameter, CorpusError, unknown_name
from probing.system.machine import with_typed_errors
from probing.system.screen import card, some
from probing.text.example import (
    Example,
    Ints,
    Label,
    composed,
    example_at,
    first_crossing,
    in_split,
    named,
    random_splits,
    unit_names,
    units_of,
)
from probing.text.sources import SPLITS, Source, parts_of, split_among, split_order

_OF_WHOLE = ("split_seed", "group")  # options of a whole corpus; the others are of its reader
_SHOWN = 6

__all__ = ["SPLITS", "Corpus", "Example", "Label", "joined"]


@dataclass(frozen=True, repr=False)
class Corpus:
    """Holds labelled texts, one `Example` each, in a fixed order.

    `corpus[3]` is an example, `corpus[10:20]` a corpus of ten, `corpus["train"]` the corpus of one split
    (`"validation"` is `dev`), and a loop over it gives the examples in order.

    Attributes:
        examples: the examples, in order.
        source: name of the source, for messages.
        unit: what groups of examples are called: `document`, or the name of the column by which the corpus is grouped.
        left_out: names of fields of the source that did not become columns, since they are nested or are lists whose
            lengths differ from the numbers of words.
        has_texts: whether the examples have real texts. In a corpus made from arrays, the texts only identify examples,
            and no baseline reads them.
    """

    examples: tuple[Example, ...]
    source: str = "memory"
    unit: str = "document"
    left_out: tuple[str, ...] = ()
    has_texts: bool = True

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice | str) -> Corpus: ...
    def __getitem__(self, index: int | slice | str) -> Example | Corpus:
        """Return an example by its ordinal, or the corpus of a slice or of one split.

        Raises:
            NoSuchExample: there is no example of this ordinal; it is an IndexError, too.
            UnknownName: there is no split of this name; the message lists the splits.
            BadParameter: it is no number, slice or name.
        """
        if isinstance(index, str):
            split = split_among(index, self.splits, self.source)
            return self.filter(lambda example: example.split == split)
        if isinstance(index, slice):
            return replace(self, examples=self.examples[index])
        return example_at(self.examples, index, self.source)

    def __repr__(self) -> str:
        sizes = Counter(example.split for example in self.examples)
        splits = ", ".join(f"{name} {sizes[name]:,}" for name in self.splits)
        columns = list(self.column_names())
        more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
        source = ", ".join(Path(part.strip()).name for part in self.source.split(","))
        return (
            f"Corpus of {len(self):,} examples from {source} "
            f"({splits or 'no splits'}; columns: {', '.join(columns[:_SHOWN]) or 'none'}{more})"
        )

    @classmethod
    @with_typed_errors
    def read(cls, source: Source, **options: str | int) -> Corpus:
        """Read a corpus from one file, a glob of files (`en_lines-*.conllu`; the split is taken from each file's name),
        a mapping `{split: file}`, `hub:NAME` or `probing:reference` (the small corpus that ships), and return it.

        A single file without splits is split at random with seed 0 (if it has three groups or more); a group is never
        divided.

        Args:
            source: what to read, in one of the forms above; the suffix of a file selects its reader (`readers/`).
            options: `split_seed`, another seed for that random split; `group`, a column whose values are used as
                groups, in place of documents; all others are options of the format's reader, such as `text="sentence"`.

        Raises:
            CorpusError: a file is missing, malformed or empty (the message names file and line), or a document is in
                two splits.
            BadParameter: the reader has no such option, or `group` is a column with a value for each word.
            UnknownName: there is no column with the name that `group` gives, or a name after `probing:` does not ship
                with the package.
        """
        parts = parts_of(source)
        readers = [registry.get("readers", part.reader).MEMBER() for part in parts]
        texts = _of_rows(options)
        read = [reader.read(part.path, split=part.split, **texts) for reader, part in zip(readers, parts, strict=True)]
        numbered = any(reader.numbers_documents_by_file for reader in readers)
        is_one = len(parts) == 1 and not parts[0].split
        return _whole(read, ", ".join(part.path for part in parts), options, is_one=is_one, numbered=numbered)

    @classmethod
    @with_typed_errors
    def from_texts(
        cls,
        texts: Sequence[str] | Sequence[Sequence[str]],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        name: str = "texts",
        **options: str | int,
    ) -> Corpus:
        """Return a corpus of texts, or of lists of words, with columns beside them; the result equals that of a JSONL
        file with one line per text.

        Args:
            texts: one text, or one list of words, for each example.
            columns: by name, one value for each text: a label, a list with a label for each word, or a value of the
                fields `split`, `document`, `id`, `spans` and `messages` as in a file.
            name: name of the source, which messages and ids of examples contain.
            options: as for `read`: `split_seed`, `group`, and those of the JSONL reader.

        Raises:
            CorpusError: a column has another length than the texts, or a value is malformed; the message names the row.
            BadParameter, UnknownName: as for `read`.
        """
        made = import_module("probing.readers._memory").corpus_of_texts(
            texts, {} if columns is None else columns, name, _of_rows(options)
        )
        return _whole([made], name, options)

    @classmethod
    @with_typed_errors
    def from_dataframe(cls, frame: Any | Mapping[str, Any], *, name: str = "DataFrame", **options: str | int) -> Corpus:
        """Return a corpus of the rows of a pandas DataFrame, or of `{split: DataFrame}`; the result equals that of a
        Parquet file with the same rows. The index is left out.

        Args:
            frame: one row per example: a column `text` (or `words`) and columns of labels. NaN and None are missing
                values.
            name: name of the source, which messages and ids of examples contain.
            options: as for `read`: `split_seed`, `group`, and those of the table reader.

        Raises:
            CorpusError: two columns have one name, a column holds values of several kinds, or rows are malformed; the
                message names the row.
            BadParameter, UnknownName: as for `read`.
        """
        made = import_module("probing.readers._memory").corpora_of_frames(frame, name, _of_rows(options))
        return _whole(made, name, options, is_one=not isinstance(frame, Mapping))

    @classmethod
    @with_typed_errors
    def from_dataset(cls, dataset: Any, *, name: str = "dataset", **options: str | int) -> Corpus:
        """Return a corpus of a `datasets.Dataset` or `DatasetDict` that is in memory; the result equals that of
        `hub:NAME` for the same data set. Nothing is downloaded.

        Args:
            dataset: one row per example: a column `text` (or `words`) and columns of labels; class labels become their
                names, and columns of images or sounds are left out. Splits of a DatasetDict stay (`validation` is
                `dev`); a single data set, or one with train only, is split at random.
            name: name of the source, which messages and ids of examples contain.
            options: as for `read`: `split_seed`, `group`, and those of the hub reader that name columns (`text`,
                `words`, `id`, `document`, `split_column`).

        Raises:
            CorpusError: it is not a data set in memory, or rows are malformed; the message names the row.
            BadParameter, UnknownName: as for `read`.
        """
        made = import_module("probing.readers.hub").corpora_of_dataset(dataset, name, _of_rows(options))
        return _whole([joined(made, name)], name, options)

    @cached_property
    def units(self) -> Ints:
        """Integer code, for each of the E examples, of the unit it belongs to: an array `(E,)`. Examples of one group,
        and examples with the same text, are in one unit; splits, folds and resampling never divide a unit.
        """
        return units_of(self.examples)

    @cached_property
    def unit_names(self) -> list[str]:
        """Return the name of the unit of every example (see `units`), in the order of the examples."""
        return unit_names(self.examples, self.units)

    def grouped_by(self, column: str) -> Corpus:
        """Return the corpus with other groups: examples with the same value in a sentence-level column form a group. An
        example without a value forms a group of its own.

        Raises:
            UnknownName: there is no such column; the message names the nearest.
            BadParameter: the column has a value for each word (not one for each example), or has no values.
        """
        column = composed(column)
        if self.level_of(column) != "sentence":
            raise BadParameter(
                f"{column} is a column of words",
                needed="a column of which every example has one value",
                found=column,
                where=self.source,
                next_step="name a column of sentences as the group",
            )
        grouped = tuple(replace(e, document=named(e.columns.get(column))) for e in self.examples)
        if all(e.document is None for e in grouped):
            raise BadParameter(
                f"the group {column} has no value in any row",
                needed="values that tell groups",
                found="none",
                where=self.source,
                next_step="name another column, or leave the group out",
            )
        return replace(self, examples=grouped, unit=column)

    def _distinct(self, *, declared: bool) -> Corpus:
        """Tell the same ids in two splits apart by a prefix: unless `declared`, they only number within a file.

        Raises:
            CorpusError: a declared document that occurs in two splits.
        """
        document = first_crossing((e.document, e.split) for e in self.examples if e.document is not None)
        if document and declared:
            step = "read with document=none to let every example stand alone"
            step = step if self.unit in ("document", "group") else f"leave the group {self.unit} out"
            raise CorpusError(
                f"{self.unit} {document[0]!r} is in two splits",
                needed=f"{self.unit}s that stay in one split",
                found=" and ".join(document[1:]),
                where=self.source,
                next_step=f"correct the splits, or {step}",
            )
        same_ids = first_crossing((e.id, e.split) for e in self.examples)
        if not (document or same_ids):
            return self
        return replace(self, examples=tuple(_prefixed(e, document, same_ids) for e in self.examples))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that states depend on: texts and word spans, in order, without labels and splits."""
        state = hashlib.sha256()
        for example in self.examples:
            text = example.text.encode()
            state.update(len(text).to_bytes(8, "little") + text + len(example.words).to_bytes(8, "little"))
            state.update(b"".join(s.to_bytes(4, "little") + e.to_bytes(4, "little") for s, e in example.words))
        return state.hexdigest()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that the examples are in; `train`, `dev` and `test` come first."""
        return tuple(sorted({example.split for example in self.examples}, key=split_order))

    def column_names(self) -> dict[str, str]:
        """Return the names of all label columns, each with its level, `word` or `sentence`."""
        levels: dict[str, str] = {}
        for example in self.examples:
            levels.update(dict.fromkeys(example.columns, "sentence"))
            levels.update(dict.fromkeys(example.word_columns, "word"))
        return levels

    def level_of(self, column: str) -> str:
        """Return the level of a column, `word` or `sentence`.

        Raises:
            UnknownName: there is no such column; the message names the nearest.
            CorpusError: the field was left out when the corpus was read; the message names the forms of labels that are
                read.
        """
        levels, column = self.column_names(), composed(column)
        if column in self.left_out and column not in levels:
            raise CorpusError(
                f"the field {column!r} is no column of labels",
                needed="one value a row or word, or a list of strings",
                found="objects, or lists of other lengths than the words",
                where=self.source,
                next_step='write a set of labels as a list of strings, ["a", "b"], or give each label its own field',
            )
        if column not in levels:
            raise unknown_name("column", column, levels, where=self.source)
        return levels[column]

    def filter(self, keep: Callable[[Example], bool]) -> Corpus:
        """Return a corpus of the examples for which the function `keep` returns true, in order."""
        return replace(self, examples=tuple(example for example in self.examples if keep(example)))

    def with_random_split(self, seed: int = 0, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> Corpus:
        """Return the corpus with train, dev and test assigned at random; a group and copies of the same text stay in
        one split. `seed` determines the draw; `fractions` are the wanted shares of train, dev and test.

        Raises:
            BadParameter: the fractions are not three positive numbers that sum to 1.
            CorpusError: there are fewer than three groups.
        """
        if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
            raise BadParameter("split fractions must be three positive numbers that sum to 1", found=repr(fractions))
        count = len(set(self.units.tolist()))
        if count < 3:
            raise CorpusError(
                "too few groups to split at random",
                needed="at least 3 different sentences, or documents",
                found=str(count),
                where=self.source,
                next_step="give train=, dev= and test= files",
            )
        splits = random_splits(self.examples, self.units, seed, fractions)
        return replace(self, examples=tuple(in_split(e, s) for e, s in zip(self.examples, splits, strict=True)))

    def _repr_html_(self) -> str:
        sizes = Counter(example.split or "no split" for example in self.examples)
        first = self.examples[0].text if self.examples else ""
        rows: list[tuple[str, object]] = [
            ("source", ", ".join(Path(part.strip()).name for part in self.source.split(","))),
            ("splits", ", ".join(f"{name} {sizes[name]:,}" for name in sorted(sizes, key=split_order))),
            ("words", f"{sum(len(example.forms) for example in self.examples):,}"),
            ("columns", some(self.column_names())),
            ("first", first[:160] + ("…" if len(first) > 160 else "")),
        ]
        return card(f"Corpus of {len(self):,} examples", rows)


def joined(parts: Iterable[Corpus], source: str) -> Corpus:
    """Join several corpora into one, in the order given, and return it."""
    listed = list(parts)
    unit = next((part.unit for part in listed if part.unit != "document"), "document")
    left_out = dict.fromkeys(name for part in listed for name in part.left_out)
    return Corpus(tuple(example for part in listed for example in part.examples), source, unit, tuple(left_out))


def _of_rows(options: Mapping[str, str | int]) -> dict[str, str]:
    """Return the options that a reader takes, as texts."""
    return {name: str(value) for name, value in options.items() if name not in _OF_WHOLE}


def _whole(
    parts: Sequence[Corpus],
    source: str,
    options: Mapping[str, str | int],
    *,
    is_one: bool = True,
    numbered: bool = False,
) -> Corpus:
    """Return the parts as one corpus, grouped as asked; without splits of its own it is split at random.

    Args:
        parts: what was read, in split order.
        source: name of the whole.
        options: those of `read`.
        is_one: whether it was read from one file, whose split nobody named.
        numbered: whether documents only number within a file.
    """
    seed, group = _split_seed(options), options.get("group")
    corpus = joined(parts, source)
    corpus = corpus if group is None else corpus.grouped_by(str(group))
    if is_one and corpus.splits == ("train",):
        too_few = seed is None and len(set(corpus.unit_names)) < 3
        return corpus if too_few else corpus.with_random_split(seed or 0)
    if seed is not None:
        raise BadParameter(
            "split_seed is for one file without splits of its own",
            found=", ".join(corpus.splits),
            where=corpus.source,
            next_step="leave split_seed out",
        )
    return corpus._distinct(declared=group is not None or not numbered)


def _split_seed(options: Mapping[str, str | int]) -> int | None:
    value = options.get("split_seed")
    try:
        return None if value is None else int(value)
    except ValueError:
        raise BadParameter("split_seed is not a number", needed="an integer", found=repr(value)) from None


def _prefixed(example: Example, document: object, same_ids: object) -> Example:
    name = f"{example.split}:{example.id}" if same_ids else example.id
    if document and example.document is not None:
        return replace(example, id=name, document=f"{example.split}:{example.document}")
    return replace(example, id=name)
