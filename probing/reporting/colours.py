"""Colours between two, and the ink that can be read on them."""

from __future__ import annotations

from collections.abc import Sequence

_DARK, _LIGHT = "#000000", "#ffffff"  # of which one has a contrast of 4.5 or more on any colour


def ink(scale: Sequence[str], domain: Sequence[float], value: float) -> str:
    """Return black or white, whichever is read better on the colour of a value: of `scale`, straight between the
    colours of the two numbers of `domain` that enclose it.
    """
    place = next((i for i in range(1, len(domain) - 1) if value <= domain[i]), len(domain) - 1)
    low, high = domain[place - 1], domain[place]
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    below, above = _parts(scale[place - 1]), _parts(scale[place])
    light = _luminance([(1 - share) * a + share * b for a, b in zip(below, above, strict=True)])
    return _DARK if (light + 0.05) ** 2 > 1.05 * 0.05 else _LIGHT


def _parts(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _luminance(parts: Sequence[float]) -> float:
    """Return the relative luminance as WCAG 2.2 defines it."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
