"""Words of a text that comes without: runs of letters and digits, and every other visible character by itself."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

_PLAIN = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")


def split_words(text: str) -> tuple[tuple[int, int], ...]:
    r"""Return character spans by `\w+(?:[-'’]\w+)*|[^\w\s]`, combining marks and joiners counted as letters.

    >>> [text[a:b] for text in ["Don't, he said."] for a, b in split_words(text)]
    ["Don't", ',', 'he', 'said', '.']
    """
    pattern = _PLAIN if text.isascii() else _with_marks()
    return tuple([match.span() for match in pattern.finditer(text)])


@cache
def _with_marks() -> re.Pattern[str]:
    """Return a pattern that counts marks as letters: Python's `\\w` leaves them out, which would cut Hindi or Thai
    words at every vowel sign.
    """
    marks = [c for c in range(0x300, sys.maxunicode + 1) if unicodedata.category(chr(c))[0] == "M"] + [0x200C, 0x200D]
    ranges: list[list[int]] = []
    for code in sorted(marks):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    letter = r"\w" + "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)
    return re.compile(f"[{letter}]+(?:[-'’][{letter}]+)*|[^{letter}\\s]")
