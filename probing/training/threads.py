"""The threads that arithmetic is split over: their number can change the last bits of a fit, so it is a setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from threadpoolctl import threadpool_info, threadpool_limits


@dataclass(frozen=True)
class Threads:
    """Numbers of threads that a process uses.

    Attributes:
        torch: of PyTorch.
        blas: of the matrix products of NumPy and SciPy; None: as they are.
    """

    torch: int
    blas: int | None

    @classmethod
    def here(cls) -> Self:
        """Return the numbers of this process: workers that take them over compute as it does."""
        found = [int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"]
        return cls(torch.get_num_threads(), max(found, default=None))

    @classmethod
    def equal(cls, count: int | None) -> Self:
        """Return `count` of each kind of thread; None: as many as this process has."""
        return cls.here() if count is None else cls(count, count)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within the block this process computes with these numbers of threads."""
        before = torch.get_num_threads()
        with threadpool_limits(self.blas, user_api="blas"):
            torch.set_num_threads(self.torch)
            try:
                yield
            finally:
                torch.set_num_threads(before)
