"""Defines `Example`, a text with its words, labels, spans and pairs, and groups examples that must stay in one split:
those of one document or named group, and those with the same text.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, CorpusError, NoSuchExample
from probing.seeds import generator

Ints = NDArray[np.int64]
Key = TypeVar("Key", bound=Hashable)
Label = str | int | float | bool | None

_SPANS: dict[tuple[int, int], tuple[int, int]] = {}
_UNLABELLED: dict[int, tuple[None, ...]] = {}
_LONGEST_SHARED = 1024
_WALKING = -2


def composed(text: str) -> str:
    """Return the text in Unicode's composed form (NFC): `é` is one character, however it was typed.

    References:
        Unicode Standard Annex 15, https://unicode.org/reports/tr15/
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def named(value: Any) -> str | None:
    """Return the name of a label, key or group in composed form; None if it is missing: null, NaN, or only white space.

    The name of 1 and of 1.0 is `1`.
    """
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = composed(str(value))
    return text if text.strip() else None


def as_input(text: str) -> str:
    """Return the text in composed form (NFC), with every run of white space as one space; texts with equal results
    count as the same input.

    The alignment of words to pieces also ignores white space.
    """
    return " ".join(composed(text).split())


def once(span: tuple[int, int]) -> tuple[int, int]:
    """Return the same object for equal spans, to save memory, unless they lie far into a long text."""
    return _SPANS.setdefault(span, span) if span[1] < _LONGEST_SHARED else span


def compact(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return the labels of the words of an example, with strings in Unicode's composed form (NFC). To save memory,
    equal strings are one object, and so are tuples of equal length in which every label is missing.
    """
    if len(labels) < _LONGEST_SHARED and is_unlabelled(labels):
        return _UNLABELLED.setdefault(len(labels), (None,) * len(labels))
    form = composed if are_decomposed(labels) else None
    if form is None:
        return tuple([sys.intern(label) if type(label) is str else label for label in labels])
    return tuple([sys.intern(form(label)) if type(label) is str else label for label in labels])


def interned(value: Any) -> Any:
    """Return a string in composed form, the same object for equal strings unless they are very long; return other
    values unchanged.
    """
    text = composed(value) if type(value) is str else value
    return sys.intern(text) if type(text) is str and len(text) < _LONGEST_SHARED else text


def is_unlabelled(labels: Sequence[Label]) -> bool:
    """Return whether every label is missing; `count` of a tuple or list is ten times faster than a loop."""
    return labels.count(None) == len(labels)


def are_decomposed(labels: Sequence[Label]) -> bool:
    """Return whether a string among the values is not in composed form (NFC)."""
    if is_unlabelled(labels):
        return False
    texts = [label for label in labels if type(label) is str]
    return not "".join(texts).isascii() and any(composed(text) != text for text in texts)


def depths(heads: Sequence[Any], where: str) -> tuple[int | None, ...]:
    """Return, for every word, the number of arcs from it up to the root (0 for the root); None if a head on this path
    is missing. `heads` are the numbers of the words' heads, counted from 1, 0 for the root; `where` names the sentence
    in messages.

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


@dataclass(frozen=True)
class Example:
    """Holds a text with its words and labels.

    Attributes:
        id: sentence id, for messages.
        text: the source text; all spans index its code points.
        words: half-open character span of each word, in order.
        columns: sentence-level labels by column name.
        word_columns: word-level labels by column name, one entry per word, None where missing. Readers of treebanks
            give `upos`, `xpos`, `lemma`, `deprel` (str), `head` (int: the number of the head, words counted from 1; 0
            for the root) and `feature:<Name>`.
        document: id shared by examples that must be in the same split; None if the example is a group of its own.
        split: `train`, `dev`, `test` or another name.
        spans: half-open character spans by name, which positions such as `entity.last` refer to; a span that this text
            does not have is left out.
        messages: (role, content) of each message of the chat that the text is a part of, for chat templates; empty if
            there is no chat.
        pairs: (word a, word b, label) triples by field name, words counted from 0.
        recomposed: names of columns with a label that was not in composed Unicode form (NFC); labels, documents and
            names of columns and spans are converted to this form.
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
        """Surface form of each word; control tasks give one label to all words of a form."""
        return tuple(self.text[start:end] for start, end in self.words)

    @cached_property
    def depths(self) -> tuple[int | None, ...]:
        """Number of arcs from every word up to the root of its tree (0 for the root), computed from the column `head`.

        It is None for a word if a head on this path is missing.

        Raises:
            CorpusError: there is no column `head`, a head is not a word of the sentence, or heads form a circle.
        """
        return depths(self.word_columns.get("head", ()), self.id)

    @property
    def group(self) -> str:
        """Id of the group that must stay in one split: the document, or the example itself if it has none."""
        return self.document if self.document is not None else self.id


def example_at(examples: Sequence[Example], index: int, source: str) -> Example:
    """Return the example with this ordinal.

    Raises:
        NoSuchExample: there is none; the message names `source`, where the examples came from.
        BadParameter: the index is no whole number.
    """
    try:
        return examples[index]
    except IndexError:
        count = len(examples)
        raise NoSuchExample(
            f"there is no example {index}",
            needed=f"a number from 0 to {count - 1}, or from -1 back to -{count}" if count else "",
            found=f"{index}, in a corpus of {count:,} examples",
            where=source,
        ) from None
    except TypeError:
        raise BadParameter(
            "a corpus is not indexed in this way",
            needed="corpus[3], corpus[10:20] or the name of a split, corpus['train']",
            found=f"{type(index).__name__} {index!r}"[:200],
            next_step="corpus.filter(lambda example: …) chooses examples by what they hold",
        ) from None


def in_split(example: Example, split: str) -> Example:
    """Return a copy of the example with another `split`. It is faster than `dataclasses.replace`, which would process
    all labels again.
    """
    moved = object.__new__(Example)
    moved.__dict__.update(example.__dict__, split=split)
    return moved


class Member(Protocol):
    """Declares the attributes of an example that grouping uses."""

    @property
    def text(self) -> str:
        """Text that the model reads."""

    @property
    def group(self) -> str:
        """Document of the example, or its id if it has no document."""

    @property
    def document(self) -> str | None:
        """Document or group of the example, if it has one."""


def connected(*keys: Sequence[Hashable]) -> Ints:
    """Return a code for every example, `(E,)`, from 0 in order of first occurrence; examples that share a value of any
    key, directly or through others, have the same code.

    Values of different keys are never compared. None is not a value and connects nothing.
    """
    parent = list(range(len(keys[0])))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = one = parent[parent[one]]
        return one

    for values in keys:
        first: dict[Hashable, int] = {}
        for place, value in enumerate(values):
            if value is not None:
                a, b = root(first.setdefault(value, place)), root(place)
                parent[max(a, b)] = min(a, b)
    codes: dict[int, int] = {}
    return np.array([codes.setdefault(root(place), len(codes)) for place in range(len(parent))], dtype=np.int64)


def units_of(examples: Sequence[Member]) -> Ints:
    """Return codes `(E,)` of the units of examples: examples with the same code must stay in one split, one fold and
    one resampling cluster.
    """
    return connected(group_keys(examples), [as_input(e.text) for e in examples])


def group_keys(examples: Sequence[Member]) -> list[tuple[bool, str]]:
    """Return a key for every example: (whether it has a document, its document or else its id), so that a document and
    an id of the same name differ.
    """
    return [(e.document is not None, e.group) for e in examples]


def unit_names(examples: Sequence[Member], units: Ints) -> list[str]:
    """Return the name of the unit of every example: the smallest of the names of its groups, with `'` appended where
    two units would have the same name.
    """
    found: dict[int, str] = {}
    for example, unit in zip(examples, units.tolist(), strict=True):
        found[unit] = min(found.get(unit, example.group), example.group)
    taken: set[str] = set()
    for unit, name in found.items():
        while name in taken:  # a document and an example's id may be called alike
            name += "'"
        taken.add(name)
        found[unit] = name
    return [found[unit] for unit in units.tolist()]


def random_splits(examples: Sequence[Member], units: Ints, seed: int, fractions: Sequence[float]) -> list[str]:
    """Return `train`, `dev` or `test` for every example, assigned at random to whole units; each split gets at least
    one unit. `units` holds the code of the unit of each example, and `fractions` the wanted shares of the three splits.
    """
    name_of = dict(zip(units.tolist(), unit_names(examples, units), strict=True))
    ordered = sorted(name_of, key=lambda unit: (name_of[unit], unit))  # by name: the order of rows changes nothing
    n = len(ordered)
    shuffled = [ordered[i] for i in generator(seed, "split").permutation(n)]
    n_dev, n_test = (max(1, round(n * f)) for f in fractions[1:])
    n_dev, n_test = min(n_dev, n - 2), min(n_test, max(1, n - n_dev - 1))
    split_of = {u: "test" if i < n_test else "dev" if i < n_test + n_dev else "train" for i, u in enumerate(shuffled)}
    return [split_of[unit] for unit in units.tolist()]


def first_crossing(pairs: Iterable[tuple[Key, str]]) -> tuple[Key, str, str] | None:
    """Return the first name that is paired with two different splits, as (name, first split, second split); None if
    every name stays in one split.
    """
    home: dict[Key, str] = {}
    for name, split in pairs:
        if home.setdefault(name, split) != split:
            return name, home[name], split
    return None
