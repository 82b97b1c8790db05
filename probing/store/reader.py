"""Store: read-only access to committed shards, by the offsets of their records and without libhdf5."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from probing.errors import BadParameter, UnknownSite, unknown_name
from probing.site import Site
from probing.store.commit_record import corrupt, incomplete, load_record, unknown_share
from probing.store.file_ops import typed_errors
from probing.store.format import MEMORY_TYPES, Recipe, content_id, read_store_json, widen
from probing.store.verify import verify_seal, verify_shard, verify_shards

Verification = Literal["off", "fast", "full"]


@dataclass(frozen=True, eq=False)
class RowTable:
    """Where each of R rows comes from, int64 arrays (R,).

    Attributes:
        example: ordinal in the corpus.
        word: word of that example; -1 where there is none.
        piece_start, piece_end: half-open piece span in the model's input.
        char_start, char_end: half-open span in code points of the text.
        position: index into the store's position names; None where rows are no positions.
    """

    example: NDArray[np.int64]
    word: NDArray[np.int64]
    piece_start: NDArray[np.int64]
    piece_end: NDArray[np.int64]
    char_start: NDArray[np.int64]
    char_end: NDArray[np.int64]
    position: NDArray[np.int64] | None = None


class Store:
    """The states of one model on one corpus. R rows in all committed shards, in shard order.

    Attributes:
        path: directory.
        store_id, content_id: what it was asked to hold, and what it holds.
        identity, environment: as written by the extraction.
        sites: names, in site order.
        n_rows: R.
        shards_done, shards_planned: equal unless opened with `allow_partial`.
        skipped: (example ordinal, reason).
        missing_words: (example ordinal, word, reason); where rows are positions, the position's number for the word.
        windowed: (example ordinal, number of windows) of the inputs that were read in windows.
        inputs: by example ordinal, unknown pieces and hash of the piece ids, of inputs that have any or are cut.
        unknown_pieces: share of the inputs' content pieces that is the tokenizer's unknown piece; None: not recorded.
        position_names: of rows that are positions; else empty.
    """

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        recipe: Recipe,
        records: dict[int, dict[str, Any]],
        level: Verification,
    ) -> None:
        self.path = path
        self.store_id = recipe.store_id
        self.content_id = content_id(records)
        self.identity: dict[str, Any] = header["identity"]
        said = header.get("environment")
        self.environment: dict[str, Any] = said if isinstance(said, dict) else {}
        self.sites = tuple(sorted(recipe.sites, key=lambda name: Site.parse(name).order))
        self.shards_done, self.shards_planned = len(records), recipe.n_shards
        self.skipped = [(example, reason) for record in records.values() for example, reason in record["skipped"]]
        self.missing_words = [(e, w, reason) for record in records.values() for e, w, reason in record["missing_words"]]
        self.windowed = [(e, count) for record in records.values() for e, count in record.get("windowed", ())]
        self.inputs = {e: (count, ids) for record in records.values() for e, count, ids in record.get("inputs", ())}
        self.unknown_pieces = unknown_share(records.values())
        self.position_names = recipe.positions
        self._recipe = recipe
        self._records = records
        self._level = level
        self._checked: set[tuple[int, str]] = set()
        self._starts = np.cumsum([0, *(record["n_rows"] for record in records.values())], dtype=np.int64)
        self.n_rows = int(self._starts[-1])

    @classmethod
    def open(cls, path: Path | str, *, allow_partial: bool = False, verification: Verification = "fast") -> Store:
        """Open a store.

        Args:
            path: its directory.
            allow_partial: give the committed shards of an unfinished store.
            verification: `off` compares JSON hashes and file sizes; `fast` also the hash of each dataset at its first
                read; `full` also the SHA-256 of each shard and what HDF5 says of it, at the first read of the shard.

        Raises:
            NotAStore: no valid store.json.
            IncompleteStore: shards are missing, with both counts.
            CorruptShard: a damaged record, or a file of another size.
        """
        if verification not in ("off", "fast", "full"):
            raise BadParameter("unknown verification", needed="off, fast or full", found=repr(verification))
        path = Path(path)
        with typed_errors(path):
            header, recipe = read_store_json(path)
            found = ((shard, load_record(path, recipe, shard)) for shard in range(recipe.n_shards))
            records = {shard: record for shard, record in found if record is not None}
        if len(records) < recipe.n_shards and not allow_partial:
            raise incomplete(path, len(records), recipe.n_shards)
        return cls(path, header, recipe, records, verification)

    @property
    def row_columns(self) -> tuple[str, ...]:
        """Names of the columns of `rows` that this store has."""
        return tuple(self._recipe.row_columns)

    @cached_property
    def rows(self) -> RowTable:
        """Where each row comes from.

        Raises:
            CorruptShard: bytes differ from the commit record.
        """
        return RowTable(**{name: self._column(f"/rows/{name}") for name in self._recipe.row_columns})

    def width(self, site: str) -> int:
        """Number of features at a site.

        Raises:
            UnknownSite: with the nearest name.
        """
        self._check_site(site)
        widths = {record["datasets"][f"/sites/{site}"]["shape"][1] for record in self._records.values()}
        if len(widths) > 1:
            raise corrupt(self.path, next(iter(self._records)), f"widths {sorted(widths)}", f"/sites/{site}")
        return int(next(iter(widths), 0))

    def site_facts(self, site: str) -> dict[str, Any]:
        """What the shards say of a site: `module`, `dtype`, `absmax` over all shards; of heads `n_heads`, `head_dim`.

        Raises:
            UnknownSite: with the nearest name.
        """
        self._check_site(site)
        said = [record["sites"][site] for record in self._records.values()]
        largest = max((float(facts.get("absmax", 0.0)) for facts in said), default=0.0)
        return (dict(said[0]) if said else {}) | {"absmax": largest}

    def read(self, site: str, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """States at a site.

        Args:
            site: one of `sites`.
            rows: row numbers (N,), in any order; None: all.

        Returns:
            (N, D) float32.

        Raises:
            UnknownSite: with the nearest name.
            BadParameter: a row number out of range.
            CorruptShard: bytes differ from the commit record.
        """
        path, width = f"/sites/{site}", self.width(site)
        if rows is None:
            out = np.empty((self.n_rows, width), np.float32)
            for position, shard in enumerate(self._records):
                part = out[self._starts[position] : self._starts[position + 1]]
                self._read_into(shard, path, part)
            return out
        rows = self._check_rows(rows)
        out = np.empty((len(rows), width), np.float32)
        home = np.searchsorted(self._starts, rows, side="right") - 1
        for position, shard in enumerate(self._records):
            chosen = np.flatnonzero(home == position)
            if len(chosen):
                local = rows[chosen] - self._starts[position]
                out[chosen] = widen(self._mapped(shard, path)[local], self._recipe.dtype)
        return out

    def verify(self) -> list[str]:
        """Read every byte and compare it with its record, and the HDF5 structure with what the format allows.

        Returns:
            What is wrong; empty if the store is sound. Missing shards are no damage.
        """
        return [*verify_shards(self.path, self._recipe), *verify_seal(self.path, self._recipe)]

    def _check_site(self, site: str) -> None:
        if site not in self._recipe.sites:
            raise unknown_name("site", site, self.sites, where=str(self.path), error=UnknownSite)

    def _check_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise BadParameter(
                "rows are not row numbers", needed="a 1-D integer array", found=f"{rows.dtype} {rows.shape}"
            )
        if rows.size and (rows.min() < 0 or rows.max() >= self.n_rows):
            raise BadParameter(
                "a row number is out of range", needed=f"0 to {self.n_rows - 1}", found=f"{rows.min()} to {rows.max()}"
            )
        return rows.astype(np.int64)

    def _column(self, path: str) -> NDArray[np.int64]:
        parts = [self._mapped(shard, path).astype(np.int64) for shard in self._records]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _read_into(self, shard: int, path: str, out: NDArray[np.float32]) -> None:
        """The whole dataset by `pread`, straight into `out` where the stored dtype is float32."""
        entry = self._records[shard]["datasets"][path]
        buffer = out if self._recipe.dtype == "float32" else np.empty(out.shape, MEMORY_TYPES[self._recipe.dtype])
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
            out[:] = widen(buffer, self._recipe.dtype)

    def _mapped(self, shard: int, path: str) -> NDArray[Any]:
        """A dataset as a read-only array; the mapping goes with the last reference to it."""
        entry = self._records[shard]["datasets"][path]
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
        record = self._records[shard]
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
        if self._level == "off" or (shard, path) in self._checked:
            return
        record = self._records[shard]
        if self._level == "full" and (shard, "") not in self._checked:
            problems = verify_shard(self.path, self._recipe, record)
            if problems:
                raise corrupt(self.path, shard, "; ".join(problems[:3]))
            self._checked.add((shard, ""))
        if xxhash.xxh3_128_hexdigest(data) != record["datasets"][path]["xxh3_128"]:
            raise corrupt(self.path, shard, "bytes that have another hash than its record says", path)
        self._checked.add((shard, path))
