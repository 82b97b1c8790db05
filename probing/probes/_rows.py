"""Standardised rows and their moments, for rows that are held in memory or streamed from a store on every pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dsyrk
from torch import Tensor

from probing.contracts.probe import RowBlocks
from probing.models.cpu_speed import can_pack, packed, product

_BLOCK = 8192
_ROWS_IN_CACHE = 1024


def row_blocks(X: NDArray[Any] | RowBlocks) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield, in order, blocks of rows as (index of the first row, raw states `(n, D)`)."""
    if isinstance(X, RowBlocks):
        yield from X.blocks()
        return
    for low in range(0, len(X), _BLOCK):
        yield low, X[low : low + _BLOCK]


def moments(X: NDArray[Any] | RowBlocks) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the scale `(D,)` of each column of `(N, D)`, in float64, computed block by block.

    The scale is the standard deviation. A column counts as constant if its variance is at most 1e-12 of its mean
    square; its scale is then 1, so that standardising makes it 0 and does not amplify rounding errors. Squares are
    summed around the mean in a second pass, so large offsets do not cost precision.

    Raises:
        ValueError: the rows are not finite.
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
    """Return the scales `(D,)`, and which columns are constant, `(D,)` bool: those with a variance of at most 1e-12 of
    their mean square, which is rounding error.
    """
    constant = variance <= 1e-12 * (variance + mean**2)
    return np.sqrt(np.where(constant, 1.0, variance)), constant


def standardise(X: NDArray[Any], mean: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return `(X - mean) / scale` as float32; the arithmetic is in float64, so that large offsets do not cost
    precision.
    """
    out = np.empty(X.shape, np.float32)
    for low in range(0, len(X), _BLOCK):
        block = X[low : low + _BLOCK].astype(np.float64)
        block -= mean
        block /= scale
        out[low : low + _BLOCK] = block
    return out


def rounded(part: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return means or scales rounded to float32, as float64."""
    return part.astype(np.float32).astype(np.float64)


def standardise_rounded(
    X: NDArray[np.float32], mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Standardise as `standardise` does, by means and scales that `rounded` returned, and return float32; all
    arithmetic is in float32, which takes a quarter of the time.

    No precision is lost, since float32 represents these means exactly.
    """
    out = np.empty(X.shape, np.float32)
    X, centre, spread = X.astype(np.float32, copy=False), mean.astype(np.float32), scale.astype(np.float32)
    for low in range(0, len(X), _ROWS_IN_CACHE):
        block = np.subtract(X[low : low + _ROWS_IN_CACHE], centre, out=out[low : low + _ROWS_IN_CACHE])
        block /= spread
    return out


Matrix = NDArray[np.float64]
_ROWS_AT_ONCE = 1024  # so that a block stays in the cache


@dataclass(frozen=True, eq=False)
class StreamedMoments:
    """Holds the sums over N rows of D columns and over M targets that closed-form fits need. All are float64, and their
    size does not grow with N.

    Sums are taken around the mean c of the first block and moved to the mean μ at the end. This costs few digits,
    whatever the offset and the order of rows: if the first block holds a share f of the rows, (μ - c)² is at most (1 -
    f)/f variances in every direction, so log10(1/f) digits are lost. (The moments in a store are taken around 0 and
    keep only 10 digits if the mean of a state is 1000 standard deviations; fits therefore do not use them.)

    Attributes:
        count: N.
        mean: `(D,)` means μ.
        centred: `(D, D)` sum of (x - μ)(x - μ)ᵀ, 0 for constant columns.
        with_targets: `(D, M)` sum of (x - μ)(y - ȳ)ᵀ, 0 for constant columns.
        scale: `(D,)` scales, as `moments` defines them.
    """

    count: int
    mean: Matrix
    centred: Matrix
    with_targets: Matrix
    scale: Matrix

    @classmethod
    def of(cls, X: NDArray[Any] | RowBlocks, targets: Sequence[NDArray[Any]] = (), device: str = "cpu") -> Self:
        """Read `(N, D)` rows once, block by block, and return their sums and those with M targets `(N,)`; matrix
        products are computed on `device`.

        Raises:
            ValueError: the rows are not finite.
        """
        n, width = X.shape
        Y = np.empty((n, len(targets)))
        for m, y in enumerate(targets):
            Y[:, m] = y - np.mean(y, dtype=np.float64)
        centre, total, products = np.zeros(width), np.zeros(width), np.zeros((width, len(targets)))
        sums = _Products(width, device)
        for low, block in _finite_blocks(X):
            centre = centre if low else block.mean(0)
            block -= centre
            total += block.sum(0)
            sums.add(block)
            products += block.T @ Y[low : low + len(block)]
        mean, upper = centre + total / n, np.triu(sums.value)
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


class _Products:
    """Sums XᵀX of blocks of rows: on the CPU the upper half alone, which is half the work, and nothing copied."""

    def __init__(self, width: int, device: str) -> None:
        self._sum: Any = np.zeros((width, width), order="F")
        self._device = torch.device(device)
        if self._device.type != "cpu":
            self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, block: Matrix) -> None:
        if self._device.type == "cpu":
            self._sum = dsyrk(1.0, block.T, beta=1.0, c=self._sum, overwrite_c=True)
            return
        there = torch.from_numpy(block).to(self._device)
        self._sum.addmm_(there.T, there)

    @property
    def value(self) -> Matrix:
        """The sum `(D, D)`, its upper half."""
        found: Matrix = self._sum if self._device.type == "cpu" else self._sum.cpu().numpy()
        return found


def solved(positive: Matrix, right: Matrix, device: str = "cpu") -> Matrix:
    """Solve a positive definite system `(D, D)` for right-hand sides `(D, M)` by Cholesky's method on `device`, and
    return the solution.

    Raises:
        numpy.linalg.LinAlgError, torch.linalg.LinAlgError: the matrix is not positive definite in float64.
    """
    if torch.device(device).type == "cpu":
        return np.asarray(cho_solve(cho_factor(positive, lower=True), right))
    there, sides = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (positive, right))
    found: Matrix = torch.cholesky_solve(sides, torch.linalg.cholesky(there)).cpu().numpy()
    return found


def _finite_blocks(X: NDArray[Any] | RowBlocks) -> Iterator[tuple[int, Matrix]]:
    """Yield the number of the first row and a float64 copy `(n, D)`, block by block."""
    for low, states in row_blocks(X):
        if not np.isfinite(states).all():
            raise ValueError("Input X contains NaN or infinity.")
        for start in range(0, len(states), _ROWS_AT_ONCE):
            yield low + start, np.array(states[start : start + _ROWS_AT_ONCE], dtype=np.float64, order="C")


_PACK = 2048
_MANY, _SOME, _ROWS_A_FEATURE = 8192, 4096, 16
_LARGE = 2**22  # elements: 16 MiB, more than caches hold


def has_low_precision(n: int, width: int) -> bool:
    """Return whether bfloat16 products pay: this processor must have them, and the rows must be so many or so wide that
    the saved time exceeds that of converting them.
    """
    return (are_many(n, width) or n * width >= _LARGE) and low_precision_helps()


def low_precision_helps() -> bool:
    """Return whether this processor multiplies bfloat16 natively, which is faster than float32."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known is not None and known())


def are_many(n: int, width: int) -> bool:
    """Return whether there are so many rows, relative to their width, that a rough pass over them brings the solver
    near the optimum.
    """
    return n >= _MANY or n >= max(_SOME, _ROWS_A_FEATURE * width)


class Operand:
    """Wraps rows `(n, D)` for the two matrix products of a pass; both are computed in the data type of the rows."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def logits(self, weights: Tensor, to: Tensor, intercept: Tensor) -> None:
        """Write `weights @ rows.T + intercept` to `to`: weights `(P, D)`, intercept `(P, 1)`, `to` `(P, n)`."""
        torch.add(weights.to(self._rows.dtype) @ self._rows.T, intercept, out=to)

    def add_gradient(self, residual: Tensor, to: Tensor) -> None:
        """Add `residual @ rows` to `to`: residual `(P, n)`, `to` `(P, D)`."""
        to += residual.to(self._rows.dtype) @ self._rows


class PackedOperand:
    """Does the products of `Operand` on rows in packed parts of `_PACK` rows each (the last may be shorter), kept with
    their packed transposes.
    """

    def __init__(self, parts: list[tuple[Tensor, Tensor]], n: int, dtype: torch.dtype) -> None:
        self._parts, self._n, self._dtype = parts, n, dtype

    def __len__(self) -> int:
        return self._n

    def logits(self, weights: Tensor, to: Tensor, intercept: Tensor) -> None:
        weights = weights.to(self._dtype)
        for part, (rows, _) in zip(torch.split(to, _PACK, 1), self._parts, strict=True):
            torch.add(product(weights, rows), intercept, out=part)

    def add_gradient(self, residual: Tensor, to: Tensor) -> None:
        for part, (_, columns) in zip(torch.split(residual, _PACK, 1), self._parts, strict=True):
            to += product(part.to(self._dtype), columns)


class HeldRows:
    """Gives the solver rows that are held in memory.

    Attributes:
        n, width: number of rows N and of features D.
        dtype, device: data type and torch device of all arithmetic.
        budget: number of elements that the logits may take; the factors may take as many again.
        has_low: whether `blocks(low=True)` yields bfloat16.
    """

    def __init__(self, X: Tensor, *, budget: int = 2**26) -> None:
        self._rows = X
        self.device = X.device
        self.n, self.width = X.shape
        self.dtype, self.budget = X.dtype, budget
        on_cpu = X.device.type == "cpu"
        self.has_low = on_cpu and X.dtype == torch.float32 and has_low_precision(self.n, self.width)

    @cached_property
    def _low(self) -> Tensor:
        return self._rows.bfloat16()

    def blocks(self, size: int, *, low: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Yield, in order, blocks of at most `size` rows as (index of the first row, rows `(n, D)`)."""
        rows = self._low if low and self.has_low else self._rows
        for start in range(0, self.n, size):
            yield start, rows[start : start + size]

    def operands(self, size: int, *, low: bool = False) -> Iterator[tuple[int, Operand | PackedOperand]]:
        """Yield what `blocks` yields, with the rows as operands of matrix products; `size` is rounded to whole parts if
        the rows are packed.
        """
        if not (low and self._packs):
            yield from ((start, Operand(rows)) for start, rows in self.blocks(size, low=low))
            return
        many = max(1, round(size / _PACK))
        for first in range(0, len(self._packs), many):
            start = first * _PACK
            n = min(self.n - start, many * _PACK)
            yield start, PackedOperand(self._packs[first : first + many], n, self._low.dtype)

    @cached_property
    def _packs(self) -> list[tuple[Tensor, Tensor]]:
        """Rows in low precision and their transposes, packed; none where they cannot be."""
        if not (self.has_low and can_pack(self._low.dtype)):
            return []
        return [(packed(rows), packed(rows.T.contiguous())) for rows in torch.split(self._low, _PACK)]

    @cached_property
    def pilot(self) -> Tensor:
        """Rows `(P, D)` from which curvature is estimated: all rows."""
        return self._low if self.has_low else self._rows


class StreamedRows:
    """Gives the solver rows that are read from a store and standardised on every pass; only a sample is held (`pilot`).
    The attributes are those of `HeldRows`.

    Args:
        source: the rows of the store.
        mean, scale: `(D,)` means and scales, rounded to float32.
        device: torch device of the rows that are yielded.
    """

    def __init__(
        self, source: RowBlocks, mean: NDArray[np.float64], scale: NDArray[np.float64], device: str = "cpu"
    ) -> None:
        self._source = source
        self._mean, self._scale = mean, scale
        self.n, self.width = source.shape
        self.dtype, self.device = torch.float32, torch.device(device)
        self.budget = source.budget // 20
        self.has_low = self.device.type == "cpu" and has_low_precision(self.n, self.width)

    def blocks(self, size: int, *, low: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Yield, in order, blocks of at most `size` rows as (index of the first row, rows `(n, D)`)."""
        for start, raw in self._source.blocks():
            rows = torch.from_numpy(standardise_rounded(raw, self._mean, self._scale)).to(self.device)
            rows = rows.bfloat16() if low and self.has_low else rows
            for first in range(0, len(rows), size):
                yield start + first, rows[first : first + size]

    def operands(self, size: int, *, low: bool = False) -> Iterator[tuple[int, Operand]]:
        """Yield what `blocks` yields, with the rows as operands of matrix products."""
        yield from ((start, Operand(rows)) for start, rows in self.blocks(size, low=low))

    @cached_property
    def pilot(self) -> Tensor:
        """Evenly spaced rows `(P, D)` from which curvature is estimated, as many as an eighth of the budget holds (at
        least 256).
        """
        count = min(self.n, max(256, self._source.budget // (32 * self.width)))
        chosen = torch.arange(count) * self.n // count
        parts = []
        for start, rows in self.blocks(8192):
            inside = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
            parts.append(rows[inside])
        return torch.cat(parts)


Multiplied = Operand | PackedOperand
Rows = HeldRows | StreamedRows
