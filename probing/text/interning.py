"""Sharing of labels, names and spans, which repeat: each is kept once, composed, which takes a third of the memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from probing.text.text_forms import composed

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
