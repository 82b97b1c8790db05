"""Batches: inputs of like length together, and the padded tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

PASS_COST = 64


def length_sorted_batches(lengths: Sequence[int], tokens_per_batch: int, pass_cost: int = PASS_COST) -> list[list[int]]:
    """Return positions, grouped so that inputs of like length share a batch of at most `tokens_per_batch` padded
    pieces.

    The longest come first, ties in order; an input longer than the budget is a batch alone; length 0 is left out. Of
    all cuts of that order, the one with the least padded pieces + `pass_cost` · batches, by dynamic programming.

    Args:
        lengths: pieces of each input.
        tokens_per_batch: the most padded pieces of a batch.
        pass_cost: what one more forward pass costs, in pieces.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (-lengths[i], i))
    best, cut = [0] * (len(order) + 1), [0] * len(order)  # cost of the inputs from i on, and where its batch ends
    for i in range(len(order) - 1, -1, -1):
        longest = lengths[order[i]]
        largest = max(1, tokens_per_batch // longest)
        ends = range(i + 1, min(i + largest, len(order)) + 1)
        cut[i] = min(ends, key=lambda end: longest * (end - i) + best[end])
        best[i] = pass_cost + longest * (cut[i] - i) + best[cut[i]]
    batches, i = [], 0
    while i < len(order):
        batches.append(order[i : cut[i]])
        i = cut[i]
    return batches


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """The inputs of one forward pass: a batch of B inputs of at most T pieces.

    Attributes:
        ids: `(B, T)` vocabulary ids.
        mask: `(B, T)` 1 for pieces, 0 for padding.
        position_ids: `(B, T)`; None: not given, the model counts by itself.
    """

    ids: Tensor
    mask: Tensor
    position_ids: Tensor | None
