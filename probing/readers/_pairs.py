"""Labelled pairs of words of a row: a field of [a, b, label] triples, words counted from 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probing.errors import CorpusError
from probing.text.corpus import Label

Triples = tuple[tuple[int, int, Label], ...]


def are_pairs(value: Any) -> bool:
    """Return whether a value has the form of labelled pairs; an empty list has."""
    return isinstance(value, list) and all(
        isinstance(item, list | tuple)
        and len(item) == 3
        and all(type(word) is int for word in item[:2])
        and (item[2] is None or isinstance(item[2], str | int | float))
        for item in value
    )


def pairs_of(row: Mapping[str, Any], names: Sequence[str], n_words: int, place: str) -> dict[str, Triples]:
    """Return the pairs of one row by field; none where the field is null.

    Raises:
        CorpusError: another form, or a word that the row has not.
    """
    found = {}
    for name in names:
        value = row.get(name)
        value = [] if value is None else value
        bad = not are_pairs(value) or [item for item in value if not all(0 <= word < n_words for word in item[:2])]
        if bad:
            raise CorpusError(
                f"field {name!r} holds no pairs of words",
                needed=f"[[a, b, label], …] with words 0 to {n_words - 1}",
                found=repr(value if bad is True else bad[0])[:80],
                where=place,
                next_step="correct it: words are counted from 0, and both lie in this row",
            )
        found[name] = tuple([(item[0], item[1], item[2]) for item in value])
    return found
