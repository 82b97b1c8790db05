"""Runs a function on several threads, each of which multiplies matrices alone."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the results of a function in the order of the items, computed on as many threads as NumPy multiplies
    matrices with.

    Each call multiplies with one thread, so that results are the same on any number. Items are taken as threads become
    free, so that only a few are in memory at once.
    """
    libraries = _libraries(len(sys.modules))
    count = max((int(pool["num_threads"]) for pool in libraries.info() if pool["user_api"] == "blas"), default=1)
    if count == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with libraries.limit(limits=1, user_api="blas"), ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@lru_cache(maxsize=1)
def _libraries(n_modules: int) -> ThreadpoolController:
    """Return the libraries that multiply matrices. They are searched for again when there are more modules, with which
    libraries are loaded: a search reads the process's whole memory map.
    """
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
