"""The files of committed shards: datasets by the offsets of their records, compared with them at first read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from probing.states.store.commit_record import corrupt
from probing.states.store.format import MEMORY_TYPES, Recipe, widen
from probing.states.store.verify import verify_shard

Verification = Literal["off", "fast", "full"]


class ShardFiles:
    """Reads datasets of shards. Safe to use from several threads: no file stays open, no place in a file is shared.

    Attributes:
        path: directory of the store.
        recipe: of the store.
        records: commit records by shard.
        level: what is compared at a first read.
    """

    def __init__(
        self, path: Path, recipe: Recipe, records: Mapping[int, Mapping[str, Any]], level: Verification
    ) -> None:
        self.path, self.recipe, self.records, self.level = path, recipe, records, level
        self._checked: set[tuple[int, str]] = set()

    def read_into(self, shard: int, path: str, out: NDArray[np.float32]) -> None:
        """Read the whole dataset by `pread`, straight into `out` where the stored dtype is float32."""
        entry = self.records[shard]["datasets"][path]
        buffer = out if self.recipe.dtype == "float32" else np.empty(out.shape, MEMORY_TYPES[self.recipe.dtype])
        if entry["nbytes"]:
            view, done = buffer.data.cast("B"), 0
            with self._opened(shard) as fd:
                while done < len(view):
                    got = os.preadv(fd, [view[done:]], entry["offset"] + done)
                    if not got:
                        raise corrupt(self.path, shard, "the file ends too early", path)
                    done += got
            self._check(shard, path, view)
        if buffer is not out:
            out[:] = widen(buffer, self.recipe.dtype)

    def mapped(self, shard: int, path: str) -> NDArray[Any]:
        """Return a dataset as a read-only array; the mapping goes with the last reference to it."""
        entry = self.records[shard]["datasets"][path]
        dtype, shape = MEMORY_TYPES[entry["dtype"]], entry["shape"]
        if not entry["nbytes"]:
            return np.empty(shape, dtype)
        with self._opened(shard) as fd:
            data = mmap(fd, 0, access=ACCESS_READ)
        stored = np.frombuffer(data, dtype, math.prod(shape), entry["offset"]).reshape(shape)
        self._check(shard, path, stored.data.cast("B"))
        return stored

    @contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        record = self.records[shard]
        try:
            fd = os.open(self.path / "shards" / record["file"], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise corrupt(self.path, shard, "its file is gone") from None
        try:
            if os.fstat(fd).st_size != record["bytes"]:
                raise corrupt(self.path, shard, f"its file has {os.fstat(fd).st_size} bytes, not {record['bytes']}")
            yield fd
        finally:
            os.close(fd)

    def _check(self, shard: int, path: str, data: memoryview) -> None:
        """Compare a dataset's bytes with its record, once in the life of this object."""
        if self.level == "off" or (shard, path) in self._checked:
            return
        record = self.records[shard]
        if self.level == "full" and (shard, "") not in self._checked:
            problems = verify_shard(self.path, self.recipe, record)
            if problems:
                raise corrupt(self.path, shard, "; ".join(problems[:3]))
            self._checked.add((shard, ""))
        if xxhash.xxh3_128_hexdigest(data) != record["datasets"][path]["xxh3_128"]:
            raise corrupt(self.path, shard, "bytes that have another hash than its record says", path)
        self._checked.add((shard, path))
