"""Sources of the softmax solver's standardised rows: held in memory, or read anew at every pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.row_blocks import RowBlocks
from probing.models.cpu_speed.packing import can_pack, packed, product
from probing.probes._standardise import standardise_rounded

_PACK = 2048
_MANY, _SOME, _ROWS_A_FEATURE = 8192, 4096, 16


def low_precision_helps() -> bool:
    """Return whether this processor multiplies bfloat16, so that products in it cost less than in float32."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known is not None and known())


def are_many(n: int, width: int) -> bool:
    """Return whether there are so many rows, of so few features, that a rough pass over them brings the solver near the
    optimum.
    """
    return n >= _MANY or n >= max(_SOME, _ROWS_A_FEATURE * width)


class Operand:
    """Rows `(n, D)` as an operand of the two products of a pass, which are made in their dtype."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def logits(self, weights: Tensor, to: Tensor, intercept: Tensor) -> None:
        """Write `weights` `(P, D)` times the rows, plus `(P, 1)`, to `(P, n)`."""
        torch.add(weights.to(self._rows.dtype) @ self._rows.T, intercept, out=to)

    def add_gradient(self, residual: Tensor, to: Tensor) -> None:
        """Add `(P, n)` times the rows to `(P, D)`."""
        to += residual.to(self._rows.dtype) @ self._rows


class PackedOperand:
    """Packed parts of rows, `(_PACK, D)` each but the last, and of their transposes: see `Operand`."""

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
    """Rows that are held in memory.

    Attributes:
        n, width: N and D.
        dtype: of all arithmetic.
        budget: elements that logits, and as many again the factors, may take.
        has_low: whether `blocks(low=True)` gives bfloat16.
    """

    def __init__(self, X: Tensor, *, budget: int = 2**26) -> None:
        self._rows = X
        self.n, self.width = X.shape
        self.dtype, self.budget = X.dtype, budget
        self.has_low = X.dtype == torch.float32 and are_many(self.n, self.width) and low_precision_helps()

    def turned(self) -> tuple[Tensor, HeldRows]:
        """Return, for fewer rows than features, an orthonormal basis `(D, N)` of their span, and their coordinates in
        it.
        """
        basis, coordinates = torch.linalg.qr(self._rows.T)
        return basis, HeldRows(coordinates.T.contiguous(), budget=self.budget)

    @cached_property
    def _low(self) -> Tensor:
        return self._rows.bfloat16()

    def blocks(self, size: int, *, low: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Yield the first row's number and `(n, D)` rows, in order, `size` at most."""
        rows = self._low if low and self.has_low else self._rows
        for start in range(0, self.n, size):
            yield start, rows[start : start + size]

    def operands(self, size: int, *, low: bool = False) -> Iterator[tuple[int, Operand | PackedOperand]]:
        """Yield the rows of `blocks`, to multiply by; `size` is rounded where they are packed."""
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
        """Rows that curvature is estimated from, `(P, D)`: here all."""
        return self._low if self.has_low else self._rows


class StreamedRows:
    """Rows read from a store and standardised on the way; of them only a pilot sample is held. See `HeldRows`.

    Args:
        source: the rows.
        mean, scale: `(D,)`, which float32 can hold.
    """

    def __init__(self, source: RowBlocks, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        self._source = source
        self._mean, self._scale = mean, scale
        self.n, self.width = source.shape
        self.dtype = torch.float32
        self.budget = source.budget // 20
        self.has_low = are_many(self.n, self.width) and low_precision_helps()

    def blocks(self, size: int, *, low: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Yield the first row's number and `(n, D)` rows, in order, `size` at most."""
        for start, raw in self._source.blocks():
            rows = torch.from_numpy(standardise_rounded(raw, self._mean, self._scale))
            rows = rows.bfloat16() if low and self.has_low else rows
            for first in range(0, len(rows), size):
                yield start + first, rows[first : first + size]

    def operands(self, size: int, *, low: bool = False) -> Iterator[tuple[int, Operand]]:
        """Yield the rows of `blocks`, to multiply by."""
        yield from ((start, Operand(rows)) for start, rows in self.blocks(size, low=low))

    @cached_property
    def pilot(self) -> Tensor:
        """Rows at even distances, `(P, D)`, as many as an eighth of the budget holds."""
        count = min(self.n, max(256, self._source.budget // (32 * self.width)))
        chosen = torch.arange(count) * self.n // count
        parts = []
        for start, rows in self.blocks(8192):
            inside = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
            parts.append(rows[inside])
        return torch.cat(parts)


Multiplied = Operand | PackedOperand
Rows = HeldRows | StreamedRows
