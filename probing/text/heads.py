"""Computes depths of words in the tree that their heads form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probing.errors import CorpusError

_WALKING = -2


def depths(heads: Sequence[Any], where: str) -> tuple[int | None, ...]:
    """Return the arcs from every word up to the root (the root: 0); None where a head on the way is missing.

    Raises:
        CorpusError: a head that is no word of the sentence, or heads in a circle.
    """
    known: dict[int, int | None] = {0: -1}
    for word in range(1, len(heads) + 1):
        path = []
        while word not in known:
            path.append(word)
            known[word] = _WALKING
            head = heads[word - 1]
            if head is None:
                word = path.pop()
                known[word] = None
                break
            if not isinstance(head, int) or isinstance(head, bool) or not 0 <= head <= len(heads):
                raise CorpusError(
                    f"the head of word {word} is no word of the sentence",
                    needed=f"an integer from 0 to {len(heads)}",
                    found=repr(head),
                    where=f"sentence {where}",
                )
            word = head
        depth = known[word]
        if depth == _WALKING:
            raise CorpusError(
                "heads form a circle, not a tree",
                needed="every word's heads lead to the root (head 0)",
                found=f"word {word} is above itself",
                where=f"sentence {where}",
            )
        for step, below in enumerate(reversed(path), start=1):
            known[below] = None if depth is None else depth + step
    return tuple(known[word] for word in range(1, len(heads) + 1))
