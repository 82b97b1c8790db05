"""What counts as one text: labels, keys and names in Unicode's composed form, each kept once in memory."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from typing import Any


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
    """Return the text in composed form (NFC), with every run of white space as one space; two texts with the same
    result count as the same input.

    The alignment of words to pieces ignores white space, too.
    """
    return " ".join(composed(text).split())


Label = str | int | float | bool | None

_SPANS: dict[tuple[int, int], tuple[int, int]] = {}
_UNLABELLED: dict[int, tuple[None, ...]] = {}
_LONGEST_SHARED = 1024


def once(span: tuple[int, int]) -> tuple[int, int]:
    """Return one shared object for equal spans, unless they are of very long texts."""
    return _SPANS.setdefault(span, span) if span[1] < _LONGEST_SHARED else span


def compact(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return the labels of words in composed form; equal strings are stored once, and so are tuples of missing labels
    of one length.
    """
    if len(labels) < _LONGEST_SHARED and not any(label is not None for label in labels):
        return _UNLABELLED.setdefault(len(labels), (None,) * len(labels))
    form = composed if are_decomposed(labels) else str
    return tuple([sys.intern(form(label)) if type(label) is str else label for label in labels])


def interned(value: Any) -> Any:
    """Return a string in composed form, as one shared object for equal strings unless it is very long; return other
    values unchanged.
    """
    text = composed(value) if type(value) is str else value
    return sys.intern(text) if type(text) is str and len(text) < _LONGEST_SHARED else text


def are_decomposed(labels: Sequence[Label]) -> bool:
    """Return whether a string among the values is not in composed form (NFC)."""
    texts = [label for label in labels if type(label) is str]
    return not "".join(texts).isascii() and any(composed(text) != text for text in texts)
