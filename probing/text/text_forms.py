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
    """Return the name of a label, key or group, composed; None where it is missing: null, NaN, or nothing but white
    space.

    1 and 1.0 are both `1`.
    """
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = composed(str(value))
    return text if text.strip() else None


def as_input(text: str) -> str:
    """Return what tells one input from another: the text, composed, with white space of any kind and length as one
    space.

    Alignment of words to pieces passes over white space, too.
    """
    return " ".join(composed(text).split())


Label = str | int | float | bool | None

_SPANS: dict[tuple[int, int], tuple[int, int]] = {}
_UNLABELLED: dict[int, tuple[None, ...]] = {}
_LONGEST_SHARED = 1024


def once(span: tuple[int, int]) -> tuple[int, int]:
    """Return one object for equal spans of texts of usual length."""
    return _SPANS.setdefault(span, span) if span[1] < _LONGEST_SHARED else span


def compact(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return the labels of words, their strings composed and shared, and one object for equally many missing ones."""
    if len(labels) < _LONGEST_SHARED and not any(label is not None for label in labels):
        return _UNLABELLED.setdefault(len(labels), (None,) * len(labels))
    form = composed if are_decomposed(labels) else str
    return tuple([sys.intern(form(label)) if type(label) is str else label for label in labels])


def interned(value: Any) -> Any:
    """Return one object for equal strings of usual length, in composed form; other values as they are."""
    text = composed(value) if type(value) is str else value
    return sys.intern(text) if type(text) is str and len(text) < _LONGEST_SHARED else text


def are_decomposed(labels: Sequence[Label]) -> bool:
    """Return whether some string is not in the composed form."""
    texts = [label for label in labels if type(label) is str]
    return not "".join(texts).isascii() and any(composed(text) != text for text in texts)
