"""Means, scales, correlations and products with targets of all columns, from one pass over the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk

from probing.contracts.row_blocks import RowBlocks
from probing.probes._standardise import row_blocks, scale_of

Matrix = NDArray[np.float64]
_BLOCK = 1024  # so that a block stays in the cache


@dataclass(frozen=True, eq=False)
class StreamedMoments:
    """Sums over N rows of D columns and over M targets that closed forms need; nothing grows with N. All float64.

    Sums are taken around the mean c of the first block and moved to the mean μ at the end. That costs few digits,
    whatever the offset and the order: if the first block holds a share f of the rows, (μ - c)² is at most (1 - f)/f
    variances in every direction, so that log10(1/f) digits go. (The store's own moments are around 0 and keep 10
    digits of states with a mean of 1000 standard deviations; so fits do not take them, kept or not.)

    Attributes:
        count: N.
        mean: `(D,)`.
        centred: `(D, D)` sum of (x - μ)(x - μ)ᵀ, 0 where a column is constant.
        with_targets: `(D, M)` sum of (x - μ)(y - ȳ)ᵀ, likewise.
        scale: `(D,)`, by the rule of `_standardise.moments`.
    """

    count: int
    mean: Matrix
    centred: Matrix
    with_targets: Matrix
    scale: Matrix

    @classmethod
    def of(cls, X: NDArray[Any] | RowBlocks, targets: Sequence[NDArray[Any]] = ()) -> Self:
        """Read `(N, D)` rows once, block by block, beside M targets `(N,)`.

        Raises:
            ValueError: rows that are not finite.
        """
        n, width = X.shape
        Y = np.empty((n, len(targets)))
        for m, y in enumerate(targets):
            Y[:, m] = y - np.mean(y, dtype=np.float64)
        centre, total, products = np.zeros(width), np.zeros(width), np.zeros((width, len(targets)))
        cross = np.zeros((width, width), order="F")  # its upper half
        for low, block in _finite_blocks(X):
            centre = centre if low else block.mean(0)
            block -= centre
            total += block.sum(0)
            cross = dsyrk(1.0, block.T, beta=1.0, c=cross, overwrite_c=True)  # half the work, and nothing copied
            products += block.T @ Y[low : low + len(block)]
        mean, upper = centre + total / n, np.triu(cross)
        upper -= np.outer(total / n, total)
        centred = np.triu(upper) + np.triu(upper, 1).T
        products -= np.outer(total / n, Y.sum(0))
        scale, constant = scale_of(np.diagonal(centred) / n, mean)
        centred[constant], centred[:, constant], products[constant] = 0.0, 0.0, 0.0
        return cls(n, mean, centred, products, scale)

    @cached_property
    def correlations(self) -> Matrix:
        """Mean of z zᵀ over standardised rows z, `(D, D)`."""
        return self.centred / (self.count * np.outer(self.scale, self.scale))

    @cached_property
    def products(self) -> Matrix:
        """Mean of z (y - ȳ)ᵀ over standardised rows z, `(D, M)`."""
        return self.with_targets / (self.count * self.scale[:, None])


def _finite_blocks(X: NDArray[Any] | RowBlocks) -> Iterator[tuple[int, Matrix]]:
    """Yield the number of the first row and a float64 copy `(n, D)`, block by block."""
    for low, states in row_blocks(X):
        if not np.isfinite(states).all():
            raise ValueError("Input X contains NaN or infinity.")
        for start in range(0, len(states), _BLOCK):
            yield low + start, np.array(states[start : start + _BLOCK], dtype=np.float64, order="C")
