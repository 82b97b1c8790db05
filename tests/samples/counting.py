"""Counts over many seeds that end as soon as the answer is certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def at_most(most: float, happens: Callable[[int], bool], seeds: Sequence[int]) -> bool:
    """Whether it happens in no more than `most` of the seeds; those that can change nothing are left out."""
    happened = 0
    for left, seed in zip(range(len(seeds), 0, -1), seeds, strict=True):
        if happened > most or happened + left <= most:
            break
        happened += happens(seed)
    return happened <= most
