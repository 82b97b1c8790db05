"""A small made-up store for the tests: 3 shards of 4 examples, one example skipped, one word missing."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from probing.states.store import FileOps, ShardContent, StoreWriter, narrow

N_SHARDS, EXAMPLES, WIDTH = 3, 4, 40
SITES = ("resid.10", "resid.2", "embed")
SKIPPED = 5


def identity(dtype: str = "float32", *, model: str = "made-up", n_shards: int = N_SHARDS) -> dict[str, Any]:
    return {
        "model": {"source": model, "revision": None},
        "tokenizer": {"source": model},
        "corpus": {"source": "made-up text", "fingerprint": "0" * 64, "subset": None},
        "extraction": {"role": "states", "sites": list(SITES), "rows": "word:mean", "dtype": dtype},
        "plan": {"starts": [k * EXAMPLES for k in range(n_shards)], "count": n_shards * EXAMPLES},
    }


def states(shard: int, site: str, n_rows: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng([shard, SITES.index(site)])
    return rng.normal(size=(n_rows, WIDTH)).astype(np.float32)


@cache
def content(shard: int, dtype: str = "float32") -> ShardContent:
    ordinals = np.arange(shard * EXAMPLES, (shard + 1) * EXAMPLES)
    counts = np.where(ordinals == SKIPPED, 0, 8 + ordinals)
    example = np.repeat(ordinals, counts)
    word = np.concatenate([np.arange(count) for count in counts])
    rows = {
        "example": example,
        "word": word,
        "piece_start": word + 1,
        "piece_end": word + 2,
        "char_start": 5 * word,
        "char_end": 5 * word + 4,
    }
    hashes = [list(hashlib.sha256(str(ordinal).encode()).digest()) for ordinal in ordinals]
    examples = {
        "offset": np.concatenate([[0], np.cumsum(counts)]),
        "ordinal": ordinals,
        "text_sha256": np.array(hashes, np.uint8),
        "flags": (ordinals == SKIPPED).astype(np.uint8),
    }
    return ShardContent(
        example_start=shard * EXAMPLES,
        n_examples=EXAMPLES,
        rows=rows,
        examples=examples,
        sites={site: narrow(states(shard, site, len(example)), dtype, site) for site in SITES},
        modules={site: f"layers.{site}" for site in SITES},
        skipped=[(SKIPPED, "too_long")] if SKIPPED in ordinals else [],
        missing_words=[(6, 3, "no_pieces")] if 6 in ordinals else [],
    )


def whole(site: str) -> np.ndarray[Any, Any]:
    return np.concatenate([content(shard).sites[site] for shard in range(N_SHARDS)])


def write(
    path: Path, dtype: str = "float32", files: FileOps | None = None, acknowledged: list[int] | None = None
) -> None:
    """Open or resume, run the missing shards, seal; note each shard whose commit returned."""
    writer = StoreWriter.open(path, identity=identity(dtype), environment={"device": "cpu"}, files=files or FileOps())
    for shard in writer.missing():
        writer.commit(shard, content(shard, dtype))
        if acknowledged is not None:
            acknowledged.append(shard)
    writer.seal()
