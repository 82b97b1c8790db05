"""Latents in a store of role `latents`: compressed sparse rows (CSR), three one-dimensional arrays in each shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, NonFiniteStates
from probing.states.store.commit_record import corrupt
from probing.states.store.format import StoreLayout, widen

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from probing.states.store.verify import ShardFiles

INDPTR, INDICES, VALUES = "/latents/indptr", "/latents/indices", "/latents/values"


def problem_of(indptr: NDArray[Any], indices: NDArray[Any], n_latents: int) -> str:
    """Return what is wrong with row ends `(R+1,)` and columns `(Z,)` of latents; "" if nothing is."""
    ends = indptr.astype(np.int64)
    if ends[0] != 0 or ends[-1] != len(indices) or (np.diff(ends) < 0).any():
        return f"indptr does not partition {len(indices)} latents"
    if len(indices) and int(indices.max()) >= n_latents:
        return f"a latent {int(indices.max())} of {n_latents}"
    falls = np.flatnonzero(np.diff(indices.astype(np.int64)) <= 0) + 1
    if not np.isin(falls, ends, assume_unique=False).all():
        return "latents of a row that are not in order, or one of them twice"
    return ""


def check_latents(arrays: Mapping[str, NDArray[Any]], recipe: StoreLayout) -> None:
    """Check the latents of a shard of a store of latents before it is written.

    Raises:
        BadParameter: they are no sparse rows of this many latents.
    """
    if found := problem_of(arrays[INDPTR], arrays[INDICES], recipe.latents):
        raise BadParameter("these latents are no sparse rows", needed="indptr, rising indices, values", found=found)


def largest_latent(values: NDArray[Any], dtype: str) -> float:
    """Return the largest latent of a shard.

    Raises:
        NonFiniteStates: a latent is not finite.
    """
    largest = float(np.abs(widen(values, dtype)).max(initial=0.0))
    if not np.isfinite(largest):
        raise NonFiniteStates(
            "latents that are not finite",
            needed="finite latents",
            found=f"a latent of {largest}",
            next_step="check the dictionary on these states: probing dictionary check",
        )
    return largest


def read_latents(
    files: ShardFiles, recipe: StoreLayout, starts: NDArray[np.int64], rows: NDArray[np.int64] | None
) -> csr_array:
    """Return latents of rows `(n,)`, in their order (None: all), as `(n, m)` float32.

    Args:
        files: the shards of the store.
        recipe: layout of the store.
        starts: number of the first row of each shard, and one past the last row.
        rows: row numbers, which are in range.

    Raises:
        CorruptShard: the bytes of a shard differ from its commit record, or are no sparse rows.
    """
    from scipy.sparse import csr_array

    chosen = np.arange(starts[-1]) if rows is None else rows
    home = np.searchsorted(starts, chosen, side="right") - 1
    counts = np.zeros(len(chosen), np.int64)
    parts: list[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]] = []
    for place, shard in enumerate(files.records):
        mine = np.flatnonzero(home == place)
        if not len(mine):
            continue
        indptr, indices, values = (files.mapped(shard, path) for path in (INDPTR, INDICES, VALUES))
        if found := problem_of(indptr, indices, recipe.latents):
            raise corrupt(files.path, shard, found, INDICES, role="latents")
        first, end = (indptr[chosen[mine] - starts[place] + k].astype(np.int64) for k in (0, 1))
        counts[mine] = end - first
        where = _ranges(first, end - first)
        parts.append((np.repeat(mine, end - first), indices[where], widen(values[where], recipe.dtype)))
    ends = np.concatenate([[0], np.cumsum(counts)])
    columns, latents = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.float32)
    for owner, indices, values in parts:
        target = _ranges(ends[np.unique(owner)], counts[np.unique(owner)])
        columns[target], latents[target] = indices, values
    return csr_array((latents, columns, ends), shape=(len(chosen), recipe.latents))


def _ranges(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers first[i], …, first[i] + counts[i] − 1 of all i, one after another."""
    total = int(counts.sum())
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64) if len(counts) else np.empty(0, np.int64)
    return np.arange(total) + np.repeat(first - starts, counts)
