"""Finds exact nearest neighbours by blocks of products in float32; searches are kept, so that label sets share them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_QUERIES, _ROWS = 1024, 8192
_KEPT_SEARCHES = 4


class Neighbours:
    """Searches among fixed rows.

    Args:
        rows: `(N, D)` float32.
        metric: `euclidean`, or `cosine` (a row of zeros is equally far from everything).
    """

    def __init__(self, rows: NDArray[np.float32], metric: str) -> None:
        self.metric = metric
        self._rows = torch.from_numpy(np.ascontiguousarray(_directions(rows) if metric == "cosine" else rows))
        self._kept: dict[tuple[str, int], NDArray[np.int64]] = {}

    def nearest(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the row numbers of the nearest rows, nearest first, `(Q, min(k, N))`.

        The last few searches are kept: probes that share this object and are asked about the same states search once.
        """
        key = (hashlib.sha256(np.ascontiguousarray(queries).data).hexdigest() + str(queries.shape), k)
        if key not in self._kept:
            while len(self._kept) >= _KEPT_SEARCHES:
                self._kept.pop(next(iter(self._kept)))
            asked = _directions(queries) if self.metric == "cosine" else queries
            blocks = torch.split(torch.from_numpy(asked), _QUERIES)
            parts = [self._search(block, min(k, len(self._rows))) for block in blocks]
            self._kept[key] = torch.cat(parts).numpy()
        return self._kept[key]

    def _search(self, queries: Tensor, k: int) -> Tensor:
        """Return row numbers `(Q, k)`, ranked by x·r, or by x·r - ½‖r‖², which falls as the distance grows."""
        values, found = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for low in range(0, len(self._rows), _ROWS):
            block = self._rows[low : low + _ROWS]
            nearness = queries @ block.T
            if self.metric == "euclidean":
                nearness -= block.square().sum(1) / 2
            best, places = nearness.topk(min(k, len(block)), dim=1)
            values, found = torch.cat([values, best], 1), torch.cat([found, places + low], 1)
            values, kept = values.topk(min(k, values.shape[1]), dim=1)
            found = found.gather(1, kept)
        return found


def _directions(rows: NDArray[np.float32]) -> NDArray[Any]:
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
