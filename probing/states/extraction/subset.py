"""Chooses examples of a corpus, by split or by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from probing.errors import BadParameter, unknown_name
from probing.states.store import ShardContent
from probing.text.corpus import Corpus


def subset_of(corpus: Corpus, subset: str | Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the ordinals of the examples kept, rising; None: all.

    Args:
        corpus: the examples.
        subset: a split, numbers, or a text of numbers and half-open ranges: `0,5,20:40`.

    Raises:
        BadParameter: no such split, with the nearest, no such example, or nothing.
    """
    if subset is None:
        return None
    if isinstance(subset, str) and not any(c.isdigit() for c in subset):
        if subset not in corpus.splits:
            raise unknown_name("subset", subset, corpus.splits, where=corpus.source, error=BadParameter)
        kept = {k for k, example in enumerate(corpus.examples) if example.split == subset}
    elif isinstance(subset, str) and subset in corpus.splits:
        kept = {k for k, example in enumerate(corpus.examples) if example.split == subset}
    else:
        kept = _numbers(subset, len(corpus)) if isinstance(subset, str) else {int(k) for k in subset}
    if not kept or min(kept) < 0 or max(kept) >= len(corpus):
        raise BadParameter(
            "the subset is not of this corpus",
            needed=f"some of 0 to {len(corpus) - 1}",
            found=f"{min(kept)} to {max(kept)}" if kept else "nothing",
            where=corpus.source,
        )
    return None if len(kept) == len(corpus) else tuple(sorted(kept))


def _numbers(text: str, count: int) -> set[int]:
    kept: set[int] = set()
    for part in text.split(","):
        first, colon, end = part.strip().partition(":")
        if not first.isdigit() or not (end.isdigit() if colon else not end) or (colon and int(end) > count):
            needed = f"a split, or numbers and ranges such as 0,5,20:40 of {count} examples"
            raise BadParameter("not a subset", needed=needed, found=part)
        kept |= set(range(int(first), int(end))) if colon else {int(first)}
    return kept


def with_ordinals(content: ShardContent, ordinals: Sequence[int]) -> ShardContent:
    """Return the content of one shard with its examples numbered by their ordinals in the corpus, not among those
    kept.
    """
    own, start = np.asarray(ordinals, dtype=np.int64), content.example_start
    return replace(
        content,
        rows={**content.rows, "example": own[content.rows["example"].astype(np.int64) - start]},
        examples={**content.examples, "ordinal": own[content.examples["ordinal"].astype(np.int64) - start]},
        skipped=tuple((ordinals[e - start], reason) for e, reason in content.skipped),
        missing_words=tuple((ordinals[e - start], w, reason) for e, w, reason in content.missing_words),
        windowed=tuple((ordinals[e - start], count) for e, count in content.windowed),
        inputs=tuple((ordinals[e - start], unknown, ids) for e, unknown, ids in content.inputs),
    )
