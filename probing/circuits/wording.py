"""Writes shares and lists of names in sentences on circuits."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_NAMED = 5


def written(value: float) -> str:
    """Return a share with three decimals; what rounds to 0 has no sign."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def listed(parts: Sequence[str], between: str = ", ") -> str:
    """Return the first five of some phrases, and how many more there are."""
    more = len(parts) - _MOST_NAMED
    return between.join(parts[:_MOST_NAMED]) + (f"{between}and {more} more" if more > 0 else "")
