"""Moments: count, sums and cross-products of one site's states over chosen examples, in float64, added in one order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import dsyrk

from probing.errors import BadParameter, ProvenanceMismatch

BLOCK_ROWS = 1024
CONSTANT = 1e-12
RULE = f"rows of a shard in blocks of {BLOCK_ROWS}, added in order by BLAS dsyrk; then shards in order"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the states of chosen examples that give means and covariances. D features.

    Moments of different shards are added by `+`. Floating-point addition has no associative law: the same bits come
    out only of the same order, which is ((shard 0 + shard 1) + shard 2) + …, as a store gathers them.

    Attributes:
        site: where the states lie.
        selection: name of the examples, such as `train` or `all`.
        count: rows.
        total: `(D,)` sum of the states.
        cross: `(D, D)` sum of x xᵀ, not centred.
        examples: ordinals chosen, rising.
        empty: those of them that have no row.
    """

    site: str
    selection: str
    count: int
    total: Floats
    cross: Floats
    examples: Ints
    empty: Ints

    @cached_property
    def mean(self) -> Floats:
        """Mean of the states, `(D,)`.

        Raises:
            BadParameter: no rows.
        """
        self._need_rows(1)
        return self.total / self.count

    @cached_property
    def constant(self) -> NDArray[np.bool_]:
        """Features that do not vary, `(D,)`: a variance of at most 1e-12 of the mean square is rounding."""
        square = np.diagonal(self.cross) / max(1, self.count)
        variance = np.diagonal(self._uncleaned) / max(1, self.count)
        return np.asarray(variance <= CONSTANT * square)

    @cached_property
    def centred(self) -> Floats:
        """Sum of (x − μ)(x − μ)ᵀ, `(D, D)`: exactly symmetric, never negative on the diagonal, 0 where a feature is
        constant.

        It is Σ xxᵀ − n μμᵀ, whose two terms cancel: about 16 + log10(variance / mean square) digits are right. States
        with a mean of 1000 standard deviations keep 10.
        """
        centred = self._uncleaned.copy()
        centred[self.constant] = 0.0
        centred[:, self.constant] = 0.0
        return centred

    def covariance(self, *, ddof: int = 0) -> Floats:
        """Return the covariance, `(D, D)`: `centred` / (count − ddof).

        Raises:
            BadParameter: not more rows than `ddof`.
        """
        self._need_rows(ddof + 1)
        return self.centred / (self.count - ddof)

    def require(self, examples: ArrayLike, *, rows: int | None = None) -> Moments:
        """Return these moments, if they are of exactly these examples; whoever fits on them calls this first.

        Args:
            examples: ordinals of the examples that a fit trains on, or of its rows; order and repetition do not matter.
            rows: how many rows it trains on, where it leaves some rows of an example out.

        Raises:
            ProvenanceMismatch: other examples, or another number of rows.
        """
        given = np.unique(np.asarray(examples, dtype=np.int64))
        extra = np.setdiff1d(given, self.examples)
        lacking = np.setdiff1d(np.setdiff1d(self.examples, self.empty), given)
        if len(extra) or len(lacking):
            raise ProvenanceMismatch(
                f"the moments of {self.site} are of other examples than those trained on",
                needed=f"moments of exactly {len(given)} examples",
                found=f"{self.selection!r}: {len(self.examples)} examples, {len(lacking)} of them not trained on, "
                f"{len(extra)} missing (first: {[*lacking.tolist(), *extra.tolist()][0]})",
                where=f"site {self.site}, selection {self.selection}",
                next_step="gather moments of the training examples: `probing store moments STORE --selection train`",
            )  # fmt: skip
        if rows is not None and rows != self.count:
            raise ProvenanceMismatch(
                f"the moments of {self.site} are of other rows than those trained on", needed=f"{rows} rows",
                found=f"{self.count} rows", where=f"site {self.site}, selection {self.selection}",
                next_step="rows without a label are in the moments; fit on the states themselves",
            )  # fmt: skip
        return self

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both; `self` is of the earlier shards.

        Raises:
            BadParameter: different sites, selections or widths, or an example in both.
        """
        ours, theirs = (self.site, self.selection, self.cross.shape), (other.site, other.selection, other.cross.shape)
        twice = np.intersect1d(self.examples, other.examples)
        if ours != theirs or len(twice):
            found = f"example {twice[0]} in both" if len(twice) else f"{theirs}, not {ours}"
            raise BadParameter("these moments cannot be added", needed="one site, different examples", found=found)
        return Moments(
            self.site, self.selection, self.count + other.count, self.total + other.total, self.cross + other.cross,
            np.union1d(self.examples, other.examples), np.union1d(self.empty, other.empty),
        )  # fmt: skip

    @cached_property
    def _uncleaned(self) -> Floats:
        return self.cross - np.outer(self.total, self.total) / max(1, self.count)

    def _need_rows(self, needed: int) -> None:
        if self.count < needed:
            raise BadParameter("too few rows for this moment", needed=f"at least {needed}", found=str(self.count))


@dataclass(frozen=True, eq=False)
class Chosen:
    """The chosen rows and examples of one shard.

    Attributes:
        rows: row numbers, rising.
        examples: ordinals, rising.
        empty: those of them that have no row.
    """

    rows: Ints
    examples: Ints
    empty: Ints

    @classmethod
    def of(cls, ordinal: Ints, offset: Ints, is_chosen: NDArray[np.bool_]) -> Chosen:
        """Choose the rows of the chosen examples.

        Args:
            ordinal: `(E,)` the shard's examples.
            offset: `(E+1,)` where their rows begin and end.
            is_chosen: by ordinal.
        """
        counts, mine = np.diff(offset), is_chosen[ordinal]
        return cls(np.flatnonzero(np.repeat(mine, counts)), ordinal[mine], ordinal[mine & (counts == 0)])


class Sums:
    """Moments in the making: shards are added in order. D features; memory does not grow with the rows.

    Attributes:
        count: rows added.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._total, self._cross = np.zeros(width), np.zeros((width, width), order="F")  # of the latter the upper half
        self._examples: list[Ints] = []
        self._empty: list[Ints] = []

    def add_shard(self, blocks: Iterable[NDArray[np.float32]], chosen: Chosen) -> None:
        """Add the chosen rows of the next shard; `blocks` gives them in order, `(BLOCK_ROWS, D)` at a time."""
        total, cross = np.zeros_like(self._total), np.zeros_like(self._cross)  # which keeps the order
        for states in blocks:
            wide = states.astype(np.float64)
            total += wide.sum(axis=0)
            cross = dsyrk(1.0, wide.T, beta=1.0, c=cross, overwrite_c=True)  # half the work, and nothing copied
            self.count += len(states)
        self._total += total
        self._cross += cross
        self._examples.append(chosen.examples)
        self._empty.append(chosen.empty)

    def moments(self, site: str, selection: str) -> Moments:
        """Return the moments of what has been added so far."""
        none = np.zeros(0, dtype=np.int64)
        examples, empty = (np.concatenate([none, *parts]) for parts in (self._examples, self._empty))
        cross = np.ascontiguousarray(np.triu(self._cross) + np.triu(self._cross, 1).T)
        return Moments(site, selection, self.count, self._total.copy(), cross, examples, empty)
