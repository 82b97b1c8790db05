"""What the stores in tests/golden hold, by a formula that owes nothing to the reader or the writer.

State n of a site is `sign · 2**exponent · (1 + mantissa / 2**bits)`, the three taken from n so that they run over every
exponent of the stored dtype; a few are 0, -0, the largest and the smallest (subnormal) number. All are exact in the
dtype and in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.states.store import ShardContent, narrow

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
N_SHARDS, EXAMPLES = 2, 3
SITES = {"resid.10": 8, "resid.2": 64, "embed": 1}  # a width of 64 lies on the aligned side of the format
ROWS_OF = (5, 0, 12, 1, 7, 25)  # rows of each example; the second is skipped
SKIPPED, MISSING = (1, "too_long"), (2, 12, "truncated")


@dataclass(frozen=True)
class Kind:
    """Range of a stored dtype: exponents, and how many mantissa bits are used."""

    low: int
    high: int
    bits: int
    largest: float
    smallest: float


KINDS = {
    "float32": Kind(-126, 127, 23, (2 - 2.0**-23) * 2.0**127, 2.0**-149),
    "float16": Kind(-14, 15, 10, 65504.0, 2.0**-24),
    "bfloat16": Kind(-126, 127, 7, (2 - 2.0**-7) * 2.0**127, 2.0**-133),
}


@dataclass(frozen=True)
class Golden:
    """One store of tests/golden.

    Attributes:
        name: its directory.
        dtype: stored dtype.
        shards: those committed.
        sites: in the order of the identity.
        role: `states`, `replay` or `latents`.
    """

    name: str
    dtype: str
    shards: tuple[int, ...] = (0, 1)
    sites: tuple[str, ...] = tuple(SITES)
    role: str = "states"


STORES = (
    Golden("float32", "float32"),
    Golden("float16", "float16"),
    Golden("bfloat16", "bfloat16"),
    Golden("partial", "float32", (1,)),
    Golden("replay", "float32", sites=("resid.10", "embed"), role="replay"),
)
N_LATENTS = 100
LATENTS = Golden("latents", "bfloat16", sites=("resid.10",), role="latents")


def value(n: int, dtype: str) -> float:
    """State number n."""
    kind = KINDS[dtype]
    special = {3: 0.0, 5: -0.0, 7: kind.largest, 11: -kind.largest, 13: kind.smallest, 17: -kind.smallest}
    if n in special:
        return special[n]
    mantissa = n * 2_654_435_761 % 2**kind.bits
    sign, exponent = -1.0 if n % 3 == 0 else 1.0, kind.low + n * 37 % (kind.high - kind.low + 1)
    return sign * 2.0**exponent * (1 + mantissa / 2**kind.bits)


def examples_of(shard: int) -> range:
    """Ordinals of a shard's examples."""
    return range(shard * EXAMPLES, (shard + 1) * EXAMPLES)


def states(site: str, shards: tuple[int, ...], dtype: str) -> NDArray[np.float64]:
    """What a reader must give: (rows, width), every number exact in float32."""
    width, start = SITES[site], 1000 * list(SITES).index(site)
    rows = [row for row, example in enumerate(_example_of_row()) if example // EXAMPLES in shards]
    numbers = [[start * (row > 0) + row * width + column for column in range(width)] for row in rows]
    return np.array([[value(n, dtype) for n in row] for row in numbers], np.float64).reshape(len(rows), width)


def latents(shards: tuple[int, ...]) -> NDArray[np.float64]:
    """What a reader must give of latents: (rows, N_LATENTS), mostly zero, every number exact in float32."""
    rows = [row for row, example in enumerate(_example_of_row()) if example // EXAMPLES in shards]
    active = [[(7 * row + 13 * latent) % 9 == 0 and row % 5 != 2 for latent in range(N_LATENTS)] for row in rows]
    numbers = [[1000 + row * N_LATENTS + latent for latent in range(N_LATENTS)] for row in rows]
    values = [[value(n, LATENTS.dtype) for n in row] for row in numbers]
    return np.where(np.array(active).reshape(-1, N_LATENTS), np.array(values).reshape(-1, N_LATENTS), 0.0)


def sparse_rows(shard: int) -> dict[str, NDArray[Any]]:
    """What the writer is given of latents."""
    dense = latents((shard,))
    places = dense != 0
    return {
        "indptr": np.cumsum([0, *places.sum(axis=1)]),
        "indices": np.nonzero(places)[1],
        "values": narrow(dense[places].astype(np.float32), LATENTS.dtype, "latents"),
    }


def _example_of_row() -> list[int]:
    return [example for example, count in enumerate(ROWS_OF) for _ in range(count)]


def rows(shards: tuple[int, ...]) -> dict[str, list[int]]:
    """What a reader must give of each row."""
    found: dict[str, list[int]] = {
        name: [] for name in ("example", "word", "piece_start", "piece_end", "char_start", "char_end")
    }
    for example in (e for shard in shards for e in examples_of(shard)):
        for word in range(ROWS_OF[example]):
            columns = (example, word if word != 4 else -1, 1 + 2 * word, 3 + 2 * word, 7 * word, 7 * word + 6)
            for name, number in zip(found, columns, strict=True):
                found[name].append(number)
    return found


def replay_rows(shards: tuple[int, ...]) -> dict[str, list[int]]:
    """What a reader must give of what the model was given, row by row."""
    n_rows = len(rows(shards)["example"])
    start = 1000 * shards[0]
    return {
        "input_id": [(start + 7919 * row) % 50_257 for row in range(n_rows)],
        "position_id": [row % 11 - 1 for row in range(n_rows)],
        "mask": [int(row % 7 != 6) for row in range(n_rows)],
    }


def outputs(shard: int) -> dict[str, NDArray[Any]]:
    """Outputs of the last row of each example that has any, at two vocabulary ids."""
    ends = np.cumsum([ROWS_OF[example] for example in examples_of(shard)])
    kept = np.unique(ends[ends > 0] - 1)
    logits = np.array([[value(100 * shard + 2 * row + column, "float32") for column in (0, 1)] for row in kept])
    return {
        "row": kept,
        "column": np.array([3, 50_000]),
        "logits": logits.astype(np.float32),
        "logsumexp": np.array([value(500 + shard + row, "float32") for row in kept], np.float32),
    }


def identity(golden: Golden) -> dict[str, Any]:
    """What the stores say they hold."""
    dtype, is_replay = golden.dtype, golden.role == "replay"
    more = {"outputs": "last", "columns": {"count": 2, "sha256": "2" * 64}} if is_replay else {}
    more |= {"latents": N_LATENTS} if golden.role == "latents" else {}
    scope = "sequence" if is_replay else "word:mean"
    return {
        "model": {"source": "golden", "revision": None, "dtype": dtype},
        "tokenizer": {"source": "golden", "padding_side": "right"},
        "corpus": {"source": "golden text – “naïve” 東京", "fingerprint": "1" * 64, "subset": None},
        "extraction": {"role": golden.role, "sites": list(golden.sites), "rows": scope, "dtype": dtype} | more,
        "plan": {"starts": [0, EXAMPLES], "count": N_SHARDS * EXAMPLES},
    }


def content(shard: int, golden: Golden) -> ShardContent:
    """What the writer is given."""
    dtype, is_replay = golden.dtype, golden.role == "replay"
    counts = [ROWS_OF[example] for example in examples_of(shard)]
    columns = rows((shard,)) | (replay_rows((shard,)) if is_replay else {})
    batch = {"batch": np.array([[example % 2, 30] for example in examples_of(shard)])} if is_replay else {}
    return ShardContent(
        example_start=shard * EXAMPLES,
        n_examples=EXAMPLES,
        rows={name: np.array(column, np.int64) for name, column in columns.items()},
        examples={
            "offset": np.cumsum([0, *counts]),
            "ordinal": np.array(examples_of(shard)),
            "text_sha256": np.arange(32 * EXAMPLES, dtype=np.uint8).reshape(EXAMPLES, 32),
            "flags": np.array([example == SKIPPED[0] for example in examples_of(shard)], np.uint8),
        }
        | batch,
        latents=sparse_rows(shard) if golden.role == "latents" else {},
        sites={}
        if golden.role == "latents"
        else {site: narrow(states(site, (shard,), dtype).astype(np.float32), dtype, site) for site in golden.sites},
        modules={site: f"golden.{site}" for site in golden.sites},
        skipped=[SKIPPED] if shard == 0 else [],
        missing_words=[MISSING] if shard == 0 else [],
        outputs=outputs(shard) if is_replay else {},
    )
