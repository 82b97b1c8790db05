"""The words without a row of a shard: a short list stands in the commit record, a long one in the shard itself.

A record has to stay small, whatever the texts are: a reader refuses JSON of more than `MAX_JSON_BYTES`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.states.store.format import REASONS

if TYPE_CHECKING:
    from probing.states.store.shard_files import ShardFiles

MISSING = "/missing/words"
LISTED = 1000  # the most that a record lists

Missing = Sequence[tuple[int, int, str]]


def is_listed(missing: Missing) -> bool:
    """Return whether these words stand in the record."""
    return len(missing) <= LISTED


def as_array(missing: Missing) -> NDArray[np.uint32]:
    """Return words (example, word, reason) as a dataset (n, 3) u4; a reason as its number in `REASONS`."""
    number = {reason: k for k, reason in enumerate(REASONS)}
    flat = (value for example, word, reason in missing for value in (example, word, number[reason]))
    return np.fromiter(flat, np.uint32, 3 * len(missing)).reshape(-1, 3)


def as_words(array: NDArray[Any]) -> list[tuple[int, int, str]]:
    """Return the words that `as_array` took; a reason that a later version added is `unknown`."""
    names = dict(enumerate(REASONS))
    return [(example, word, names.get(reason, "unknown")) for example, word, reason in array.tolist()]


def entries(missing: Missing) -> dict[str, Any]:
    """Return the entries of a commit record: the words, or how many there are by reason."""
    if is_listed(missing):
        return {"missing_words": [[int(example), int(word), reason] for example, word, reason in missing]}
    return {"missing_words": [], "missing_counts": dict(Counter(reason for *_, reason in missing))}


def words_of(records: Mapping[int, Mapping[str, Any]], files: ShardFiles) -> list[tuple[int, int, str]]:
    """Return the words without a row of all shards.

    Raises:
        CorruptShard: bytes differ from the commit record.
    """
    found: list[tuple[int, int, str]] = []
    for shard, record in records.items():
        found += [(example, word, reason) for example, word, reason in record["missing_words"]]
        found += as_words(files.mapped(shard, MISSING)) if MISSING in record["datasets"] else []
    return found


def counts(record: Mapping[str, Any]) -> Counter[str]:
    """Return how many words have no row, by reason, as a checked record says."""
    return Counter(record.get("missing_counts") or (entry[-1] for entry in record["missing_words"]))
