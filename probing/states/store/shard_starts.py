"""Computes where the shards of a corpus begin, from the corpus and the recipe alone."""

from __future__ import annotations

from probing.errors import BadParameter
from probing.states.store.format import MAX_SHARDS
from probing.text.corpus import Corpus, Example

EXAMPLES_PER_SHARD = 8192


def shard_starts(
    corpus: Corpus, scope: str, row_bytes: int, shard_bytes: int, example_bytes: int = 0
) -> tuple[int, ...]:
    """Return the number of the first example of each shard, computed from the corpus and the recipe alone.

    Rows are estimated without a tokenizer (one per word, one per sentence, one piece per four characters), so that a
    resumed run need not tokenise the examples that are done.

    Args:
        corpus: the corpus.
        scope: what a row is: `piece`, `word`, `sentence` or `position`.
        row_bytes: bytes of one row (of all positions of an example) over all sites.
        shard_bytes: approximate size of a shard.
        example_bytes: bytes that each example takes besides its rows.

    Raises:
        BadParameter: there would be more shards than the format allows.
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
    """Return an estimate of the number of rows of an example."""
    return {"word": len(example.words), "sentence": 1, "position": 1}.get(scope, len(example.text) // 4 + 1)
