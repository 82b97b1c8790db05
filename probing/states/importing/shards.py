"""Cuts imported arrays into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from probing.states.importing.rows import MatchedRows
from probing.states.store import ShardContent, narrow
from probing.text.corpus import Corpus

_SKIPPED, _HAS_MISSING = 1, 4


def shard_content(
    span: tuple[int, int],
    corpus: Corpus,
    rows: MatchedRows,
    states: Mapping[str, Any],
    names: Mapping[str, str],
    dtype: str,
) -> ShardContent:
    """Return one shard's part of the arrays.

    Args:
        span: first and one past the last example.
        corpus: the corpus.
        rows: all rows, matched with it.
        states: all states `(R, D)` by site.
        names: what the source calls each site.
        dtype: stored dtype.

    Raises:
        NotRepresentable: a state that overflows the stored dtype.
    """
    first, end = span
    part = slice(rows.offset[first], rows.offset[end])
    skipped = tuple(entry for entry in rows.skipped if first <= entry[0] < end)
    missing = tuple(entry for entry in rows.missing if first <= entry[0] < end)
    lost, lacking = {e for e, _ in skipped}, {e for e, _, _ in missing}
    hashes = b"".join(hashlib.sha256(e.text.encode()).digest() for e in corpus.examples[first:end])
    examples = {
        "offset": rows.offset[first : end + 1] - rows.offset[first],
        "ordinal": np.arange(first, end),
        "text_sha256": np.frombuffer(hashes, "u1").reshape(-1, 32),
        "flags": np.array([_SKIPPED * (e in lost) | _HAS_MISSING * (e in lacking) for e in range(first, end)], "u1"),
    }
    return ShardContent(
        example_start=first,
        n_examples=end - first,
        rows={name: values[part] for name, values in rows.columns.items()},
        examples=examples,
        sites={site: narrow(values[part], dtype, site) for site, values in states.items()},
        modules={site: f"imported: {column}"[:200] for site, column in names.items()},
        skipped=skipped,
        missing_words=missing,
    )
