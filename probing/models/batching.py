"""Grouping of examples: shards of a corpus, length-sorted batches of a shard, and pooling of a batch's pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from probing.errors import BadParameter
from probing.text.alignment import Ints, Rows
from probing.text.corpus import Corpus, Example

MAX_SHARDS = 100_000
EXAMPLES_PER_SHARD = 8192
PASS_COST = 64


def shard_starts(
    corpus: Corpus, scope: str, row_bytes: int, shard_bytes: int, example_bytes: int = 0
) -> tuple[int, ...]:
    """Return the first example of each shard, from the corpus and the recipe alone.

    Rows are estimated without a tokenizer (one per word, one per sentence, one piece per four characters), so that a
    resumed run need not read what is done.

    Args:
        corpus: the examples.
        scope: `piece`, `word`, `sentence` or `position`.
        row_bytes: bytes of one row (of all positions of an example) over all sites.
        shard_bytes: size to stay near.
        example_bytes: what each example takes besides its rows.

    Raises:
        BadParameter: more shards than the format allows.
    """
    budget = max(shard_bytes, row_bytes)
    starts, filled = [0], 0
    for ordinal, example in enumerate(corpus.examples):
        estimate = row_estimate(example, scope) * row_bytes + example_bytes
        is_full = filled + estimate > budget or ordinal - starts[-1] >= EXAMPLES_PER_SHARD
        if is_full and ordinal > starts[-1]:
            starts.append(ordinal)
            filled = 0
        filled += estimate
    if len(starts) > MAX_SHARDS:
        raise BadParameter(
            "too many shards",
            needed=f"at most {MAX_SHARDS}",
            found=str(len(starts)),
            next_step="raise shard_bytes, or extract fewer sites at a time",
        )
    return tuple(starts)


def row_estimate(example: Example, scope: str) -> int:
    """Return about how many rows an example gives."""
    return {"word": len(example.words), "sentence": 1, "position": 1}.get(scope, len(example.text) // 4 + 1)


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


@dataclass(frozen=True)
class Gather:
    """A plan of which pieces of a padded batch make which rows. R rows in the batch.

    Attributes:
        rows: `(R,)` rows of the shard.
        pieces: flat places of the pieces in the batch, row after row.
        bounds: `(R + 1,)` where each row's pieces begin and end.
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
        """Return the float32 rows `(R, D)` of states `(B, T, D)`: the largest of the pieces for `max`, else their
        mean.
        """
        flat = states.reshape(-1, states.shape[-1]).float()
        mode = "max" if how == "max" else "mean"
        pooled: Tensor = embedding_bag(self.pieces, flat, self.bounds, mode=mode, include_last_offset=True)
        return pooled
