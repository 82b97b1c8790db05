"""A made-up extraction job: the states of every shard follow from its number, so that any row can be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import ProbingError
from probing.states.extraction.shard_reading import pages_for
from probing.states.store import FileOps, ShardContent, Store, StoreWriter

EXAMPLES = 3
WIDTHS = {"embed": 16, "resid.0": 64}  # datasets on both sides of the alignment threshold
Acknowledge = Callable[[int], None]


class QuickFiles(FileOps):
    """Forcing to the disk is counted but not done, where a test loses data by its own hand."""

    def fsync(self, fd: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Job:
    """Shards to compute. Jobs that differ in `salt` alone have one identity and other bytes, as two kinds of device.

    Attributes:
        n_shards: how many.
        salt: added to the seed of the states.
        rows: rows of each example.
    """

    n_shards: int = 4
    salt: int = 0
    rows: int = 6

    @property
    def identity(self) -> dict[str, Any]:
        """What a store of this job says it holds."""
        return {
            "model": {"source": "made-up"},
            "tokenizer": {},
            "corpus": {"source": "made-up", "fingerprint": "0" * 64, "subset": None},
            "extraction": {"role": "states", "sites": list(WIDTHS), "rows": "word:mean", "dtype": "float32"},
            "plan": {"starts": [k * EXAMPLES for k in range(self.n_shards)], "count": self.n_shards * EXAMPLES},
        }

    def states(self, shard: int, site: str) -> NDArray[np.float32]:
        """The only right states of a shard: (rows, width), in pages of their own, as those of an extraction."""
        seed = [shard, list(WIDTHS).index(site), self.salt]
        states = pages_for((EXAMPLES * self.rows, WIDTHS[site]), np.float32)
        states[:] = np.random.default_rng(seed).standard_normal(states.shape, np.float32)
        return states

    def content(self, shard: int) -> ShardContent:
        """What the writer is given."""
        return _content(self, shard)

    def open(self, path: Path, files: FileOps | None = None) -> StoreWriter:
        """A new or resumed writer."""
        return StoreWriter.open(path, identity=self.identity, environment={}, files=files or FileOps())

    def write(
        self,
        path: Path,
        files: FileOps | None = None,
        acknowledge: Acknowledge = lambda shard: None,
        order: Iterable[int] | None = None,
    ) -> None:
        """Create or resume, commit what is missing, seal; `acknowledge` is told each shard whose commit returned."""
        writer = self.open(path, files)
        missing = writer.missing()
        for shard in missing if order is None else [shard for shard in order if shard in missing]:
            writer.commit(shard, self.content(shard))
            acknowledge(shard)
        writer.seal()

    def found(self, path: Path) -> dict[int, bytes]:
        """The states of each committed shard, as a reader of the store sees them; {} where there is no store."""
        try:
            store = Store.open(path, allow_partial=True)
            states = [store.read(site) for site in WIDTHS]
        except ProbingError:
            return {}
        home = store.rows.example // EXAMPLES
        return {int(k): b"".join(part[home == k].tobytes() for part in states) for k in np.unique(home)}

    def truth(self, shard: int) -> bytes:
        """What `found` must say of a shard."""
        return b"".join(self.content(shard).sites[site].tobytes() for site in WIDTHS)

    def wrong(self, found: dict[int, bytes]) -> list[int]:
        """Shards of which something else was found."""
        return [k for k, states in found.items() if not 0 <= k < self.n_shards or states != self.truth(k)]


@lru_cache(maxsize=256)
def _content(job: Job, shard: int) -> ShardContent:
    ordinals = np.arange(shard * EXAMPLES, (shard + 1) * EXAMPLES)
    word = np.tile(np.arange(job.rows), EXAMPLES)
    return ShardContent(
        example_start=shard * EXAMPLES,
        n_examples=EXAMPLES,
        rows={
            "example": np.repeat(ordinals, job.rows),
            "word": word,
            "piece_start": word + 1,
            "piece_end": word + 2,
            "char_start": 5 * word,
            "char_end": 5 * word + 4,
        },
        examples={
            "offset": np.arange(EXAMPLES + 1) * job.rows,
            "ordinal": ordinals,
            "text_sha256": np.full((EXAMPLES, 32), shard % 256, np.uint8),
            "flags": np.zeros(EXAMPLES, np.uint8),
        },
        sites={site: job.states(shard, site) for site in WIDTHS},
        modules=dict.fromkeys(WIDTHS, "made-up"),
    )
