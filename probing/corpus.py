"""Example and Corpus: text, words as character spans, label columns, splits and groups. Knows nothing of models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from probing.errors import BadParameter, CorpusError, unknown_name
from probing.seeds import generator

SPLITS = ("train", "dev", "test")
Label = str | int | float | bool | None


@dataclass(frozen=True)
class Example:
    """One text, with its words and labels.

    Attributes:
        id: sentence id, for messages.
        text: the source text; all spans index its code points.
        words: half-open character spans, in order, one per word.
        columns: sentence-level labels by column name.
        word_columns: word-level labels by column name, one entry per word, None where missing. Readers of
            treebanks give `upos`, `xpos`, `lemma`, `deprel` (str), `head` (int: 0 is the root, else the 1-based word)
            and `feature:<Name>`.
        document: the id shared by examples that must not cross splits (None: the example stands alone).
        split: `train`, `dev`, `test` or another name.
    """

    id: str
    text: str
    words: tuple[tuple[int, int], ...] = ()
    columns: Mapping[str, Label] = None  # type: ignore[assignment]
    word_columns: Mapping[str, tuple[Label, ...]] = None  # type: ignore[assignment]
    document: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        if self.columns is None:
            object.__setattr__(self, "columns", {})
        if self.word_columns is None:
            object.__setattr__(self, "word_columns", {})

    @property
    def forms(self) -> tuple[str, ...]:
        """Surface strings of the words: the word types of control tasks."""
        return tuple(self.text[start:end] for start, end in self.words)

    @property
    def group(self) -> str:
        """What must stay in one split: the document, else the example itself."""
        return self.document if self.document is not None else self.id


@dataclass(frozen=True)
class Corpus:
    """An ordered sequence of examples; an example's ordinal is its position here."""

    examples: tuple[Example, ...]
    source: str = "memory"

    def __len__(self) -> int:
        return len(self.examples)

    @classmethod
    def read(cls, source: str | Mapping[str, str], **options: str) -> Corpus:
        """Read one file, a glob of files (`en_lines-*.conllu`: each file's split from its name) or `{split: file}`.

        Options are those of the format's reader, e.g. `text="sentence"` for tables.

        Raises:
            CorpusError: a file that is missing, malformed or empty, with file and line.
        """
        from probing.reading import read_corpus

        return read_corpus(source, **options)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered texts and word spans: what states depend on. Labels and splits are not in it."""
        state = hashlib.sha256()
        for example in self.examples:
            text = example.text.encode()
            state.update(len(text).to_bytes(8, "little") + text + len(example.words).to_bytes(8, "little"))
            state.update(b"".join(s.to_bytes(4, "little") + e.to_bytes(4, "little") for s, e in example.words))
        return state.hexdigest()

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits present, `train`, `dev`, `test` first."""
        present = {example.split for example in self.examples}
        return tuple(sorted(present, key=lambda s: (SPLITS.index(s) if s in SPLITS else len(SPLITS), s)))

    def column_names(self) -> dict[str, str]:
        """Every label column with its level: `word` or `sentence`."""
        levels: dict[str, str] = {}
        for example in self.examples:
            levels.update(dict.fromkeys(example.columns, "sentence"))
            levels.update(dict.fromkeys(example.word_columns, "word"))
        return levels

    def level_of(self, column: str) -> str:
        """`word` or `sentence`.

        Raises:
            UnknownName: no such column, with the nearest one.
        """
        levels = self.column_names()
        if column not in levels:
            raise unknown_name("column", column, levels, where=self.source)
        return levels[column]

    def filter(self, keep: Callable[[Example], bool]) -> Corpus:
        """The examples for which `keep` is true, in order."""
        return replace(self, examples=tuple(example for example in self.examples if keep(example)))

    def with_random_split(self, seed: int = 0, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> Corpus:
        """Assign train, dev and test by group at random: no group crosses splits.

        Raises:
            BadParameter: fractions that are not three positive numbers summing to 1.
            CorpusError: fewer than three groups.
        """
        if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
            raise BadParameter("split fractions must be three positive numbers that sum to 1", found=repr(fractions))
        groups = sorted({example.group for example in self.examples})
        if len(groups) < 3:
            raise CorpusError(
                "too few groups to split at random", needed="at least 3 sentences or documents",
                found=str(len(groups)), where=self.source, next_step="give train=, dev= and test= files",
            )  # fmt: skip
        shuffled = [groups[i] for i in generator(seed, "split").permutation(len(groups))]
        n_dev, n_test = (max(1, round(len(groups) * f)) for f in fractions[1:])
        n_dev, n_test = min(n_dev, len(groups) - 2), min(n_test, max(1, len(groups) - n_dev - 1))
        split_of = {
            g: "test" if i < n_test else "dev" if i < n_test + n_dev else "train" for i, g in enumerate(shuffled)
        }
        return replace(self, examples=tuple(replace(e, split=split_of[e.group]) for e in self.examples))


def joined(parts: Iterable[Corpus], source: str) -> Corpus:
    """One corpus from several, in the order given."""
    return Corpus(tuple(example for part in parts for example in part.examples), source)
