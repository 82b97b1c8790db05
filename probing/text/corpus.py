"""Example and Corpus: text, words, label columns, splits, groups, depths in trees; independent of any model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any

from probing import registry
from probing.errors import BadParameter, CorpusError, unknown_name
from probing.system.machine import with_typed_errors
from probing.text.grouping import (
    Ints,
    Label,
    are_decomposed,
    compact,
    composed,
    first_crossing,
    interned,
    named,
    once,
    random_splits,
    unit_names,
    units_of,
)
from probing.text.sources import SPLITS, Source, parts_of, split_order

_WALKING = -2


def depths(heads: Sequence[Any], where: str) -> tuple[int | None, ...]:
    """Return the number of arcs from every word up to the root (0 for the root); None if a head on the way is missing.

    Raises:
        CorpusError: a head is not a word of the sentence, or heads form a circle.
    """
    known: dict[int, int | None] = {0: -1}
    for word in range(1, len(heads) + 1):
        path = []
        while word not in known:
            path.append(word)
            known[word] = _WALKING
            head = heads[word - 1]
            if head is None:
                word = path.pop()
                known[word] = None
                break
            if not isinstance(head, int) or isinstance(head, bool) or not 0 <= head <= len(heads):
                raise CorpusError(
                    f"the head of word {word} is no word of the sentence",
                    needed=f"an integer from 0 to {len(heads)}",
                    found=repr(head),
                    where=f"sentence {where}",
                )
            word = head
        depth = known[word]
        if depth == _WALKING:
            raise CorpusError(
                "heads form a circle, not a tree",
                needed="every word's heads lead to the root (head 0)",
                found=f"word {word} is above itself",
                where=f"sentence {where}",
            )
        for step, below in enumerate(reversed(path), start=1):
            known[below] = None if depth is None else depth + step
    return tuple(known[word] for word in range(1, len(heads) + 1))


__all__ = ["SPLITS", "Corpus", "Example", "Label", "joined"]


@dataclass(frozen=True)
class Example:
    """Holds a text with its words and labels.

    Attributes:
        id: sentence id, for messages.
        text: the source text; all spans index its code points.
        words: half-open character span of each word, in order.
        columns: sentence-level labels by column name.
        word_columns: word-level labels by column name, one entry per word, None where missing. Readers of
            treebanks give `upos`, `xpos`, `lemma`, `deprel` (str), `head` (int: 0 is the root, else the 1-based word)
            and `feature:<Name>`.
        document: id shared by examples that must be in the same split; None: the example is a group of its own.
        split: `train`, `dev`, `test` or another name.
        spans: half-open character spans by name, for rows at positions; a span that this text does not have is left
            out.
        messages: for prompts by a chat template, the (role, content) of a chat that contains the text once; else empty.
        pairs: (word a, word b, label) triples by field name, words counted from 0.
        recomposed: names of columns in which a label was not in composed Unicode form (NFC), into which labels,
            documents and the names of columns and spans are converted.
    """

    id: str
    text: str
    words: tuple[tuple[int, int], ...] = ()
    columns: Mapping[str, Label] = None  # type: ignore[assignment]
    word_columns: Mapping[str, tuple[Label, ...]] = None  # type: ignore[assignment]
    document: str | None = None
    split: str = "train"
    spans: Mapping[str, tuple[int, int]] = None  # type: ignore[assignment]
    messages: tuple[tuple[str, str], ...] = ()
    pairs: Mapping[str, tuple[tuple[int, int, Label], ...]] = None  # type: ignore[assignment]
    recomposed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Spans and labels repeat: kept once, 100,000 annotated sentences take a third of the memory.
        columns, word_columns = self.columns or {}, self.word_columns or {}
        if not self.recomposed:
            changed = [name for name, label in columns.items() if are_decomposed((label,))]
            changed += [name for name, labels in word_columns.items() if are_decomposed(labels)]
            object.__setattr__(self, "recomposed", tuple(map(interned, changed)))
        object.__setattr__(self, "words", tuple([once(span) for span in self.words]))
        object.__setattr__(self, "columns", {interned(key): interned(label) for key, label in columns.items()})
        object.__setattr__(self, "word_columns", {interned(key): compact(x) for key, x in word_columns.items()})
        object.__setattr__(self, "document", named(self.document))
        for name in ("spans", "pairs"):
            given = getattr(self, name) or {}
            object.__setattr__(self, name, {interned(key): value for key, value in given.items()})

    @property
    def forms(self) -> tuple[str, ...]:
        """Surface form of each word, which is the word type that control tasks use."""
        return tuple(self.text[start:end] for start, end in self.words)

    @cached_property
    def depths(self) -> tuple[int | None, ...]:
        """Number of arcs from every word up to the root of its tree (0 for the root), from the word column `head`.

        It is None for a word if a head on the way is missing.

        Raises:
            CorpusError: there is no column `head`, a head is not a word of the sentence, or heads form a circle.
        """
        return depths(self.word_columns.get("head", ()), self.id)

    @property
    def group(self) -> str:
        """Id of the group that must stay in one split: the document, or the example itself if it has none."""
        return self.document if self.document is not None else self.id


@dataclass(frozen=True)
class Corpus:
    """Holds an ordered sequence of examples; an example's ordinal is its index here.

    Attributes:
        examples: the examples, in order.
        source: name of the source, for messages.
        unit: what a group of examples is called: `document`, or the name of the column by which the corpus is grouped.
        left_out: names of fields of the source that did not become columns, since they are nested or are lists whose
            lengths differ from the numbers of words.
    """

    examples: tuple[Example, ...]
    source: str = "memory"
    unit: str = "document"
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @classmethod
    @with_typed_errors
    def read(cls, source: Source, **options: str | int) -> Corpus:
        """Read a corpus from one file, a glob of files (`en_lines-*.conllu`; the split is taken from each file's name),
        a mapping `{split: file}`, `hub:NAME` or `probing:reference` (the small corpus that ships), and return it.

        A single file without splits is split at random with seed 0 (if it has three groups or more); a group is never
        divided.

        Args:
            source: what to read; the suffix of a file decides which reader in `readers/` is used.
            options: `split_seed`, another seed for that random split; `group`, a column whose values are used as
                groups, in place of documents; all others are options of the format's reader, such as `text="sentence"`.

        Raises:
            CorpusError: a file is missing, malformed or empty (the message names file and line), or a document is in
                two splits.
            BadParameter: the reader has no such option, or `group` is a column of words.
            UnknownName: there is no column of the name `group`, or `probing:` stands before something that does not
                ship.
        """
        seed, group = _split_seed(options), options.get("group")
        parts = parts_of(source)
        readers = [registry.get("readers", part.reader).MEMBER() for part in parts]
        texts = {name: str(value) for name, value in options.items() if name not in ("split_seed", "group")}
        read = [reader.read(part.path, split=part.split, **texts) for reader, part in zip(readers, parts, strict=True)]
        corpus = joined(read, ", ".join(part.path for part in parts))
        corpus = corpus if group is None else corpus.grouped_by(str(group))
        if len(parts) == 1 and not parts[0].split and corpus.splits == ("train",):
            too_few = seed is None and len(set(corpus.unit_names)) < 3
            return corpus if too_few else corpus.with_random_split(seed or 0)
        if seed is not None:
            raise BadParameter(
                "split_seed is for one file without splits of its own",
                found=", ".join(corpus.splits),
                where=corpus.source,
                next_step="leave split_seed out",
            )
        numbered = group is None and any(reader.numbers_documents_by_file for reader in readers)
        return corpus._distinct(declared=not numbered)

    @cached_property
    def units(self) -> Ints:
        """Code of the unit of every example, `(E,)`. A unit is a group with all copies of its texts; splits, folds and
        resampling never divide it.
        """
        return units_of(self.examples)

    @cached_property
    def unit_names(self) -> list[str]:
        """Name of the unit of every example (see `units`)."""
        return unit_names(self.examples, self.units)

    def grouped_by(self, column: str) -> Corpus:
        """Return the corpus with the values of a sentence column as groups; an example without a value is a group of
        its own.

        Raises:
            UnknownName: there is no such column; the message names the nearest.
            BadParameter: it is a column of words, or has no values.
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
            step = step if self.unit == "document" else f"leave the group {self.unit} out"
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
        """SHA-256 of the ordered texts and word spans, which states depend on. It does not depend on labels
        and splits.
        """
        state = hashlib.sha256()
        for example in self.examples:
            text = example.text.encode()
            state.update(len(text).to_bytes(8, "little") + text + len(example.words).to_bytes(8, "little"))
            state.update(b"".join(s.to_bytes(4, "little") + e.to_bytes(4, "little") for s, e in example.words))
        return state.hexdigest()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that occur; `train`, `dev`, `test` come first."""
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
            CorpusError: the field was left out when the corpus was read; the message says which forms of labels are
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
        """Return a corpus of the examples for which `keep` returns true, in order."""
        return replace(self, examples=tuple(example for example in self.examples if keep(example)))

    def with_random_split(self, seed: int = 0, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> Corpus:
        """Return the corpus with train, dev and test assigned at random; a group, or copies of one text, are never
        divided.

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
        return replace(self, examples=tuple(_in_split(e, s) for e, s in zip(self.examples, splits, strict=True)))

    def _repr_html_(self) -> str:
        shown: str = import_module("probing.reporting.plots").card(self)
        return shown


def joined(parts: Iterable[Corpus], source: str) -> Corpus:
    """Join several corpora into one, in the order given, and return it."""
    listed = list(parts)
    unit = next((part.unit for part in listed if part.unit != "document"), "document")
    left_out = dict.fromkeys(name for part in listed for name in part.left_out)
    return Corpus(tuple(example for part in listed for example in part.examples), source, unit, tuple(left_out))


def _split_seed(options: Mapping[str, str | int]) -> int | None:
    value = options.get("split_seed")
    try:
        return None if value is None else int(value)
    except ValueError:
        raise BadParameter("split_seed is not a number", needed="an integer", found=repr(value)) from None


def _in_split(example: Example, split: str) -> Example:
    """Return the example in another split: `replace` would go through all of its labels again."""
    moved = object.__new__(Example)
    moved.__dict__.update(example.__dict__, split=split)
    return moved


def _prefixed(example: Example, document: object, same_ids: object) -> Example:
    name = f"{example.split}:{example.id}" if same_ids else example.id
    if document and example.document is not None:
        return replace(example, id=name, document=f"{example.split}:{example.document}")
    return replace(example, id=name)
