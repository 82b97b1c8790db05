"""RowBlocks: chosen rows of one site that are read block by block, for probes that train within a budget."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy as shallow
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from probing.errors import BadParameter


class StoredStates(Protocol):
    """The methods of a store of hidden states that `RowBlocks` needs."""

    n_rows: int

    def width(self, site: str) -> int:
        """Return the number of features of a site's states."""

    def read(self, site: str, rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Return the states `(N, D)` of chosen rows."""

    def blocks(
        self, site: str, rows: NDArray[np.int64] | None, *, block_rows: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield the states of chosen rows, block by block."""


class RowBlocks:
    """Gives the states `(N, D)` of one site block by block, so that they are never all in memory; `LinearProbe` and
    `RidgeProbe` can train on them.

    Args:
        store: the store that holds the states.
        site: name of a site of the store.
        rows: `(N,)` row numbers of the store, in the order of the labels; None: all rows.
        budget: bytes of memory that a fit on these rows may take, not counting its weights and the interpreter.

    Raises:
        UnknownSite: the store has no such site; the message names the nearest.
        BadParameter: the budget is below 16 MiB.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(
        self, store: StoredStates, site: str, rows: NDArray[np.int64] | None = None, *, budget: int = 2**29
    ) -> None:
        if budget < 2**24:
            raise BadParameter("too small a budget to train in", needed="16777216 bytes or more", found=str(budget))
        self.store, self.site, self.rows, self.budget = store, site, rows, budget
        self.shape = (store.n_rows if rows is None else len(rows), store.width(site))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def fits(self) -> bool:
        """Whether three copies of all rows fit into the budget; if so, a fit reads the rows once and holds them in
        memory.
        """
        return 3 * self.dtype.itemsize * self.shape[0] * self.shape[1] <= self.budget

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield, in order, blocks of rows as (index of the first row, states `(n, D)`); a block takes at most 1/32 of
        the budget.
        """
        most = max(1, min(8192, self.budget // (32 * self.dtype.itemsize * max(1, self.shape[1]))))
        start = 0
        for _, states in self.store.blocks(self.site, self.rows, block_rows=most):
            yield start, states
            start += len(states)

    def head(self, end: int) -> RowBlocks:
        """Return blocks of the first `end` rows only."""
        part = shallow(self)
        part.rows = (np.arange(len(self)) if self.rows is None else self.rows)[:end]
        part.shape = (len(part.rows), self.shape[1])
        return part

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all rows at once as an array."""
        states = self.store.read(self.site, self.rows)
        return states if dtype is None else states.astype(dtype, copy=False)
