"""Laws of work on several threads."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from probing.system.threads import in_threads


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order_few_items_are_taken_ahead_and_each_multiplies_alone(count: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            taken.append(i)
            yield i

    def work(i: int) -> tuple[int, set[int]]:
        time.sleep(0.002 * (i % 3))
        return i, set(blas_threads())

    with threadpool_limits(count, user_api="blas"):
        before = blas_threads()
        for done, (i, threads) in enumerate(in_threads(work, items())):
            assert (i, threads) == (done, {1})
            assert len(taken) <= done + max(before) + 1
        assert blas_threads() == before


def test_an_error_is_raised_and_the_threads_are_given_back() -> None:
    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // (i - 3), range(10)))
    assert blas_threads() == before
