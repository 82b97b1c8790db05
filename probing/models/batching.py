"""Batches: inputs of like length together, and the padded tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

PASS_COST = 64


def length_sorted_batches(lengths: Sequence[int], tokens_per_batch: int, pass_cost: int = PASS_COST) -> list[list[int]]:
    """Group inputs of similar length into batches of at most `tokens_per_batch` padded pieces, and return the batches
    as lists of positions in `lengths`.

    The longest come first, ties in order. An input longer than the budget is a batch of its own; inputs of length 0 are
    left out. Dynamic programming finds, for that order, the batches with the smallest number of padded pieces +
    `pass_cost` · number of batches.

    Args:
        lengths: number of pieces of each input.
        tokens_per_batch: largest number of padded pieces of a batch.
        pass_cost: cost of one more forward pass, in pieces.
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
    """Holds the inputs of one forward pass: a batch of B inputs of at most T pieces.

    Attributes:
        ids: `(B, T)` vocabulary ids.
        mask: `(B, T)` 1 for pieces, 0 for padding.
        position_ids: `(B, T)` positions; None: the model computes them itself.
    """

    ids: Tensor
    mask: Tensor
    position_ids: Tensor | None
