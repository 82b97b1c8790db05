"""Fits names into charts: breaks them into lines, and shortens in the middle what needs too many."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import accumulate, islice, takewhile

from probing.errors import printable

_NARROW, _BROAD, _BREAKS = set("ijlftrI.,:;'`|!()[]{}/\\ "), set("mwMWOQ@%&→–…"), set(" _:/-,;|+=.")
_GAP = "…"


def width_of(text: str) -> float:
    """Return about how wide a text is, in units of the size of its letters; rather too much than too little, since
    readers have fonts of different widths.
    """
    return sum(map(_width, text))


def _width(character: str) -> float:
    if character in _NARROW:
        return 0.42
    if character in _BROAD or unicodedata.east_asian_width(character) in "WF":
        return 1.05
    if unicodedata.combining(character):
        return 0.0
    return 0.74 if character.isupper() else 0.66


def lines_of(name: str, width: float, most: int = 3) -> list[str]:
    """Return a name in lines of at most `width` (see `width_of`), broken after spaces and signs where there are some;
    where it needs more than `most` lines, its middle is replaced by `…`.
    """
    text = " ".join(printable(name).split())
    broken = _broken(text, width)
    kept = len(text)
    while len(broken) > most:
        kept = min(kept - 1, int(kept * most / len(broken)) + 1)
        half = kept // 2
        broken = _broken(f"{text[: kept - half]}{_GAP}{text[len(text) - half :]}", width)
    return broken


def _broken(text: str, width: float) -> list[str]:
    lines, start = [], 0
    while start < len(text):
        widths = accumulate(map(_width, islice(text, start, None)))
        end = start + max(1, sum(1 for _ in takewhile(lambda so_far: so_far <= width, widths)))
        if end < len(text):
            middle = start + (end - start) // 2
            end = next((at for at in range(end, middle, -1) if text[at - 1] in _BREAKS), end)
        lines.append(text[start:end].strip() or text[start:end])
        start = end
    return lines or [""]


def fitted(names: Sequence[str], width: float, most: int = 3) -> list[list[str]]:
    """Return each name in lines (see `lines_of`); different names that would look the same are numbered."""
    found: list[list[str]] = []
    seen: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        lines = lines_of(name, width, most)
        alike = seen.setdefault(tuple(lines), [])
        alike += [] if name in alike else [name]
        number = alike.index(name) + 1
        found.append(lines if number == 1 else [*lines[:-1], *lines_of(f"({number}) {lines[-1]}", width, 1)])
    return found


def chosen_line(names: Sequence[str], width: float, most: int = 3) -> str:
    """Return the Vega expression that gives the lines of the label with the value `datum.value`."""
    shown = ",".join("[" + ",".join(map(quoted, lines)) + "]" for lines in fitted(names, width, most))
    return f"[{shown}][indexof([{','.join(map(quoted, names))}],datum.value)]"


def quoted(text: str) -> str:
    """Return the text as a string of a Vega expression."""
    return "'" + printable(text).replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ") + "'"
