"""Standardisation on training rows only, with a guard for constant coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.row_blocks import RowBlocks

_BLOCK = 8192
_ROWS_IN_CACHE = 1024


def row_blocks(X: NDArray[Any] | RowBlocks) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the number of the first row and `(n, D)` raw states, block by block in order."""
    if isinstance(X, RowBlocks):
        yield from X.blocks()
        return
    for low in range(0, len(X), _BLOCK):
        yield low, X[low : low + _BLOCK]


def moments(X: NDArray[Any] | RowBlocks) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and scale `(D,)` of the columns of `(N, D)`, in float64, a block of rows at a time.

    A column is constant if its variance is at most 1e-12 of its mean square; its scale is 1, so that it
    becomes 0 and not noise blown up. The second pass is around the mean, so large offsets cost no digits.

    Raises:
        ValueError: streamed rows that are not finite.
    """
    n = len(X)
    total = np.zeros(X.shape[1])
    for _, block in row_blocks(X):
        total += block.sum(0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise ValueError("Input X contains NaN or infinity.")
    mean = total / n
    squares = np.zeros_like(mean)
    for _, raw in row_blocks(X):
        block = raw.astype(np.float64)
        block -= mean
        squares += np.einsum("nd,nd->d", block, block)
    return mean, scale_of(squares / n, mean)[0]


def scale_of(variance: NDArray[np.float64], mean: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return scales `(D,)`, and which columns are constant: a variance of at most 1e-12 of the mean square is
    rounding.
    """
    constant = variance <= 1e-12 * (variance + mean**2)
    return np.sqrt(np.where(constant, 1.0, variance)), constant


def standardise(X: NDArray[Any], mean: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return `(X - mean) / scale` as float32, subtracted in float64 so that a large offset costs no digits."""
    out = np.empty(X.shape, np.float32)
    for low in range(0, len(X), _BLOCK):
        block = X[low : low + _BLOCK].astype(np.float64)
        block -= mean
        block /= scale
        out[low : low + _BLOCK] = block
    return out


def rounded(part: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return means or scales that float32 can hold."""
    return part.astype(np.float32).astype(np.float64)


def standardise_rounded(
    X: NDArray[np.float32], mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Standardise by `rounded` means and scales, all in float32 at a quarter of the time.

    A mean that float32 holds is subtracted from float32 states without loss of digits.
    """
    out = np.empty(X.shape, np.float32)
    X, centre, spread = X.astype(np.float32, copy=False), mean.astype(np.float32), scale.astype(np.float32)
    for low in range(0, len(X), _ROWS_IN_CACHE):
        block = np.subtract(X[low : low + _ROWS_IN_CACHE], centre, out=out[low : low + _ROWS_IN_CACHE])
        block /= spread
    return out
