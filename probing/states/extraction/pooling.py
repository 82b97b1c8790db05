"""Pooling: the states of a padded batch's pieces become the states of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from probing.text.alignment import Ints, Rows


@dataclass(frozen=True)
class Gather:
    """Says which pieces of a padded batch are pooled to which of its R rows.

    Attributes:
        rows: `(R,)` numbers of the rows in the shard.
        pieces: indices of the pieces in the flattened batch, row after row.
        bounds: `(R + 1,)` row r has `pieces[bounds[r]:bounds[r + 1]]`.
    """

    rows: Tensor
    pieces: Tensor
    bounds: Tensor

    @classmethod
    def of(cls, rows: Rows, batch: Sequence[int], first_piece: Ints, length: int, device: str) -> Gather:
        """Plan the pooling of the examples `batch` of `rows`, padded to `length` pieces."""
        chosen = np.concatenate([np.arange(rows.offset[e], rows.offset[e + 1]) for e in batch])
        place = np.repeat(np.arange(len(batch)), [rows.offset[e + 1] - rows.offset[e] for e in batch])
        start, counts = rows.first[chosen], rows.first[chosen + 1] - rows.first[chosen]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], counts)
        shift = np.repeat(place * length + first_piece[place], counts)
        pieces = shift + rows.pieces[np.repeat(start, counts) + within]
        return cls(*(torch.from_numpy(np.asarray(x, dtype=np.int64)).to(device) for x in (chosen, pieces, bounds)))

    def pool(self, states: Tensor, how: str) -> Tensor:
        """Pool states `(B, T, D)` to float32 rows `(R, D)` and return these: the maximum over a row's pieces for `max`,
        else their mean.
        """
        flat = states.reshape(-1, states.shape[-1]).float()
        mode = "max" if how == "max" else "mean"
        pooled: Tensor = embedding_bag(self.pieces, flat, self.bounds, mode=mode, include_last_offset=True)
        return pooled
