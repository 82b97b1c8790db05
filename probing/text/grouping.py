"""Groups examples that must stay in one split: those of one document or named group, and those with the same text."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from probing.seeds import generator


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


Label = str | int | float | bool | None

_SPANS: dict[tuple[int, int], tuple[int, int]] = {}
_UNLABELLED: dict[int, tuple[None, ...]] = {}
_LONGEST_SHARED = 1024


def once(span: tuple[int, int]) -> tuple[int, int]:
    """Return the same object for equal spans, to save memory, unless they lie far into a long text."""
    return _SPANS.setdefault(span, span) if span[1] < _LONGEST_SHARED else span


def compact(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return the labels of words in composed form; equal strings are stored once, and so are tuples of missing labels
    of one length.
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


Ints = NDArray[np.int64]
Key = TypeVar("Key", bound=Hashable)


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
    one unit.
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
