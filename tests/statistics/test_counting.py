"""The count that ends early answers as the whole count does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from tests.samples.counting import at_most, enough


def answers_of_few(n: int, most: int, rate: float) -> tuple[float, float]:
    """The probability that the count ends early with another answer than all n would give, and the expected seeds."""
    last, share, other, asked = enough(n, most), np.array([1.0] + [0.0] * most), 0.0, 0.0
    for done in range(n + 1):
        for happened in np.flatnonzero(share):
            if done >= last[happened] or happened + n - done <= most:
                other += share[happened] * binom.sf(most - happened, n - done, rate)
                asked += done * share[happened]
                share[happened] = 0.0
        share = (1 - rate) * share + rate * np.r_[0.0, share[:-1]]  # more than `most` end the count: all n fail too
    return other, asked


@pytest.mark.parametrize(("n", "most"), [(300, 27), (240, 30), (200, 17), (100, 10), (40, 8), (24, 5), (12, 4)])
def test_whatever_the_rate_few_seeds_answer_as_all_do(n: int, most: int) -> None:
    assert max(answers_of_few(n, most, rate)[0] for rate in np.linspace(0.005, 0.5, 40)) <= 0.004
    assert answers_of_few(n, most, 0.01)[1] <= 0.8 * n


@pytest.mark.parametrize(("rate", "holds"), [(0.0, True), (0.01, True), (0.25, False), (1.0, False)])
def test_plain_rates_are_told_apart(rate: float, holds: bool) -> None:
    for draw in range(20):
        happens = np.random.default_rng(draw).random(100) < rate
        assert at_most(10, lambda seed, happens=happens: bool(happens[seed]), range(100)) is holds
