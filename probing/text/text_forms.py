"""The form in which texts are compared: labels, keys and names in Unicode's composed form, inputs without regard to
white space.
"""

from __future__ import annotations

import unicodedata
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
