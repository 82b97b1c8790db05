"""Counts over many seeds that end as soon as the answer is certain, or as good as certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from scipy.optimize import brentq
from scipy.stats import binom

DOUBT = 0.01


def at_most(most: float, happens: Callable[[int], bool], seeds: Sequence[int]) -> bool:
    """Whether it happens in no more than `most` of the seeds; those that can change nothing are left out, and so are
    all others once it has happened too seldom to leave doubt (see `enough`).
    """
    happened = 0
    for done, seed in enumerate(seeds):
        if happened > most or happened + len(seeds) - done <= most or done >= enough(len(seeds), int(most))[happened]:
            break
        happened += happens(seed)
    return happened <= most


@cache
def enough(n: int, most: int) -> tuple[int, ...]:
    """Return, by how often it happened, the number of seeds after which no more need be asked.

    With p the rate at which `most` of n are exceeded as often as not, so few among so many have a probability of at
    most `DOUBT`. Whatever the true rate, the answer is then other than that of all n seeds with a probability of at
    most .004, and only where all n would have failed: a true rate as stated fails no oftener, another one is caught as
    often but for that (`tests/statistics/test_counting.py` adds it up).
    """
    rate = brentq(lambda p: binom.sf(most, n, p) - 0.5, 1e-9, 1.0)
    return tuple(
        next((m for m in range(n + 1) if binom.cdf(happened, m, rate) <= DOUBT), n) for happened in range(most + 1)
    )
