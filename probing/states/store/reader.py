"""Defines `Store`, which reads the finished files (shards) of a store by the offsets in their records, without the HDF5
library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, UnknownSite, unknown_name
from probing.models.site import Site, shortly
from probing.provenance import model_called
from probing.states.store.commit_record import (
    corrupt,
    expected_datasets,
    incomplete,
    load_record,
    unknown_share,
    words_of,
)
from probing.states.store.file_ops import typed_errors
from probing.states.store.format import StoreLayout, are_cut, as_slice, content_id, read_store_json, widen
from probing.states.store.latents import read_latents
from probing.states.store.verify import ShardFiles, Verification, verify_seal, verify_shards
from probing.states.store.views import RowTable, Sites, to_dataframe, torch_dataset
from probing.system.screen import card, some

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_array

    from probing.text.corpus import Corpus


class Store:
    """Reads the states of one model on one corpus from a folder. A store has R rows; each is the state of a token, word
    or sentence at every site.

    Attributes:
        path: directory of the store.
        store_id: hash of what determines the states (model, corpus and options).
        content_id: hash of the stored files (shards).
        identity: what determines the states (model, corpus and options), as the extraction recorded it.
        environment: library versions, as the extraction recorded them.
        sites: names of the sites, from the first layer to the last; `sites["resid.3"]` are all states there, `(R, D)`
            float32.
        n_rows: number of rows R.
        shards: numbers of the finished shards.
        shards_done: number of finished shards.
        shards_planned: number of shards of the finished store; equal to `shards_done` unless the store was opened with
            `allow_partial`.
        skipped: (index of the example, reason) for each example without rows.
        windowed: (index of the example, number of windows) for each input that was read in windows.
        inputs: for inputs that have unknown tokens or were cut, by index of the example: number of unknown tokens, and
            hash of the token ids.
        unknown_pieces: share of the tokens (special ones not counted) that are the tokenizer's unknown token; None if
            not recorded.
        position_names: names of the positions, if rows are positions; else empty.
    """

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        recipe: StoreLayout,
        records: dict[int, dict[str, Any]],
        level: Verification,
    ) -> None:
        self.path = path
        self.store_id = recipe.store_id
        self.content_id = content_id(records)
        self.identity: dict[str, Any] = header["identity"]
        said = header.get("environment")
        self.environment: dict[str, Any] = said if isinstance(said, dict) else {}
        self.sites = Sites(sorted(recipe.sites, key=lambda name: Site.parse(name).order), self.read)
        self.shards = tuple(records)
        self.shards_done, self.shards_planned = len(records), recipe.n_shards
        self.skipped = [(example, reason) for record in records.values() for example, reason in record["skipped"]]
        self.windowed = [(e, count) for record in records.values() for e, count in record.get("windowed", ())]
        self.inputs = {e: (count, ids) for record in records.values() for e, count, ids in record.get("inputs", ())}
        self.unknown_pieces = unknown_share(records.values())
        self.position_names = recipe.positions
        self._recipe = recipe
        self._records = records
        self._files = ShardFiles(path, recipe, records, level)
        self._starts = np.cumsum([0, *(record["n_rows"] for record in records.values())], dtype=np.int64)
        self.n_rows = int(self._starts[-1])

    @classmethod
    def open(cls, path: Path | str, *, allow_partial: bool = False, verification: Verification = "fast") -> Store:
        """Open a store for reading and return it.

        Args:
            path: directory of the store.
            allow_partial: whether to open an unfinished store, with the shards that are finished.
            verification: degree of checking: `off`, hashes of JSON files and sizes of shards; `fast`, also the hash of
                each dataset at its first read; `full`, also the SHA-256 and the HDF5 structure of each shard at its
                first read.

        Raises:
            NotAStore: the directory has no valid store.json.
            IncompleteStore: shards are missing; the message gives both counts.
            CorruptShard: a record is damaged, or a file has another size.
        """
        if verification not in ("off", "fast", "full"):
            raise BadParameter("unknown verification", needed="off, fast or full", found=repr(verification))
        path = Path(path)
        with typed_errors(path):
            header, recipe = read_store_json(path)
            found = ((shard, load_record(path, recipe, shard)) for shard in range(recipe.n_shards))
            records = {shard: record for shard, record in found if record is not None}
        if len(records) < recipe.n_shards and not allow_partial:
            raise incomplete(path, len(records), recipe.n_shards, role=recipe.role)
        return cls(path, header, recipe, records, verification)

    @property
    def row_columns(self) -> tuple[str, ...]:
        """Names of the columns of `rows` that this store has."""
        return tuple(self._recipe.row_columns)

    @property
    def role(self) -> str:
        """Kind of the store: `states`, `replay` (states of whole sequences, with all that `Replay` needs) or
        `latents`.
        """
        return self._recipe.role

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the datasets under `/outputs` in this store."""
        wanted = expected_datasets(self._recipe, 0, 0)
        return tuple(path.removeprefix("/outputs/") for path in wanted if path.startswith("/outputs/"))

    @cached_property
    def missing_words(self) -> list[tuple[int, int, str]]:
        """Words without a row, as (index of the example, index of the word, reason); if rows are positions, with the
        index of the position in place of the word.
        """
        return words_of(self._records, self._files)

    @cached_property
    def cut_inputs(self) -> NDArray[np.int64]:
        """Indices of the examples whose input was cut at the limit of tokens, `max_length`, `(C,)`."""
        return self._column("/examples/ordinal")[are_cut(self._column("/examples/flags"))]

    @property
    def max_length(self) -> int | None:
        """Largest number of tokens of an input; None if there was no limit, or it is not known."""
        limit = self.identity["extraction"].get("max_length")
        return limit if isinstance(limit, int) else None

    def first_row(self, shard: int) -> int:
        """Return the number of the first row of a finished shard."""
        return int(self._starts[self.shards.index(shard)])

    def dataset(self, shard: int, path: str) -> NDArray[Any]:
        """Return the HDF5 dataset `path` of a finished shard, such as `/outputs/logits`, in its stored type, as a
        read-only, memory-mapped array.

        Raises:
            UnknownName: there is no such dataset; the message names the nearest.
            CorruptShard: the bytes of a shard differ from its commit record.
        """
        known = self._records[shard]["datasets"]
        if path not in known:
            raise unknown_name("dataset", path, known, where=str(self.path))
        return self._files.mapped(shard, path)

    @cached_property
    def rows(self) -> RowTable:
        """The token, word or sentence that each row is the state of, as a `RowTable`.

        Raises:
            CorruptShard: the bytes of a shard differ from its commit record.
        """
        return RowTable(**{name: self._column(f"/rows/{name}") for name in self._recipe.row_columns})

    def width(self, site: str) -> int:
        """Return the number of features at a site.

        Raises:
            UnknownSite: the store has no such site; the message names the nearest.
        """
        self._check_site(site)
        if self.role == "latents":
            return self._recipe.latents
        widths = {record["datasets"][f"/sites/{site}"]["shape"][1] for record in self._records.values()}
        if len(widths) > 1:
            raise corrupt(self.path, next(iter(self._records)), f"widths {sorted(widths)}", f"/sites/{site}")
        return int(next(iter(widths), 0))

    def site_facts(self, site: str) -> dict[str, Any]:
        """Return facts about a site: `module` (its path), `dtype`, `absmax` (largest absolute value); for a site of
        attention heads also `n_heads` and `head_dim`.

        Raises:
            UnknownSite: the store has no such site; the message names the nearest.
        """
        self._check_site(site)
        said = [record["sites"][site] for record in self._records.values()]
        largest = max((float(facts.get("absmax", 0.0)) for facts in said), default=0.0)
        return (dict(said[0]) if said else {}) | {"absmax": largest}

    def read(self, site: str, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Read and return the states at a site.

        Args:
            site: one of `sites`.
            rows: row numbers (N,), in any order; None means all.

        Returns:
            (N, D) float32.

        Raises:
            UnknownSite: the store has no such site; the message names the nearest.
            BadParameter: a row number is out of range.
            CorruptShard: the bytes of a shard differ from its commit record.
        """
        path, width = f"/sites/{site}", self.width(site)
        if self.role == "latents":
            return np.asarray(self.latents(rows).toarray())
        if rows is None:
            out = np.empty((self.n_rows, width), np.float32)
            for position, shard in enumerate(self._records):
                part = out[self._starts[position] : self._starts[position + 1]]
                self._files.read_into(shard, path, part)
            return out
        rows = self._check_rows(rows)
        out = np.empty((len(rows), width), np.float32)
        is_ordered = bool((rows[1:] >= rows[:-1]).all())
        order = slice(None) if is_ordered else np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        ends = np.searchsorted(sorted_rows, self._starts)
        for position, shard in enumerate(self._records):
            here = slice(int(ends[position]), int(ends[position + 1]))
            if here.start < here.stop:
                local = sorted_rows[here] - self._starts[position]
                chosen = here if is_ordered else order[here]  # type: ignore[index]
                stored = self._files.mapped(shard, path)[as_slice(local)]
                out[chosen] = widen(stored, self._recipe.dtype) if self._recipe.dtype == "bfloat16" else stored
        return out

    def latents(self, rows: NDArray[np.int64] | None = None) -> csr_array:
        """Read and return the latents in a store that `probing dictionary encode` wrote.

        Args:
            rows: row numbers (N,), in any order; None means all.

        Returns:
            (N, m) float32, sparse, with m latents; `read` returns the same as a full array.

        Raises:
            BadParameter: the store has states and no latents, or a row number is out of range.
            CorruptShard: the bytes of a shard differ from its commit record.
        """
        if self.role != "latents":
            raise BadParameter(
                "this store has no latents",
                needed="a store of role latents",
                found=f"role {self.role}",
                where=str(self.path),
                next_step="encode its states: probing dictionary encode",
            )
        chosen = None if rows is None else self._check_rows(rows)
        return read_latents(self._files, self._recipe, self._starts, chosen)

    def blocks(
        self, site: str, rows: NDArray[np.int64] | None = None, *, block_rows: int = 8192
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield the states at a site block by block, so that probes can be trained on more than fits into memory.
        Threads may share a store.

        Args:
            site: one of `sites`.
            rows: row numbers (N,), in any order; None means all. A block then ends where its shard ends, so that
                float32 states are a read-only view of the mapped file and not a copy.
            block_rows: largest number of rows of a block.

        Yields:
            Row numbers (n,) and their states (n, D) float32, C-contiguous.

        Raises:
            UnknownSite, BadParameter, CorruptShard: see `read`; raised before the first block if possible.
        """
        if block_rows < 1:
            raise BadParameter("a block needs rows", needed="block_rows of at least 1", found=str(block_rows))
        self._check_site(site)
        if rows is not None or self.role == "latents":
            chosen = self._check_rows(np.arange(self.n_rows) if rows is None else rows)
            parts = (chosen[first : first + block_rows] for first in range(0, len(chosen), block_rows))
            return ((part, self.read(site, part)) for part in parts)
        return self._all_blocks(site, block_rows)

    def _all_blocks(self, site: str, block_rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for position, shard in enumerate(self._records):
            stored, start = self._files.mapped(shard, f"/sites/{site}"), int(self._starts[position])
            for first in range(0, len(stored), block_rows):
                part = stored[first : first + block_rows]
                states = part if part.dtype == np.float32 else widen(part, self._recipe.dtype)
                yield start + first + np.arange(len(part)), states

    def to_dataframe(
        self,
        sites: str | Sequence[str] = "*",
        corpus: Corpus | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> pd.DataFrame:
        """Return a DataFrame with one row per row of the store: the columns of `rows`, those of the corpus if it is
        given, and the states.

        Args:
            sites: names of sites, with wildcards; feature 0 of `resid.3` is the column `resid.3[0]`. An empty list
                leaves states out.
            corpus: the corpus that the store was made from; it adds `id`, `text`, `group` (a unit that splits never
                divide), `split`, for words `form`, and its label columns.
            rows: row numbers (N,), in any order; None means all.

        Raises:
            UnknownSite, BadParameter, CorruptShard: see `read`.
            ProvenanceMismatch: the store was made from another corpus.
        """
        return to_dataframe(self, sites, corpus, None if rows is None else self._check_rows(rows))

    def torch_dataset(self, site: str, y: Any = None, rows: NDArray[np.int64] | None = None) -> Any:
        """Return a `torch.utils.data.Dataset` of the states at a site, `(D,)` float32 each, or of (state, label) pairs;
        a `DataLoader` reads each batch from the store in one call.

        Args:
            site: one of `sites`.
            y: (N,) labels that are numbers, one for each row; None means states alone.
            rows: row numbers (N,), in any order; None means all.

        Raises:
            UnknownSite: the store has no such site; the message names the nearest.
            BadParameter: a row number is out of range, or the labels are not numbers, or not as many as rows.
        """
        return torch_dataset(self, site, y, None if rows is None else self._check_rows(rows))

    def verify(self) -> list[str]:
        """Read every byte of the store, compare it with the recorded hashes, compare the HDF5 structure with the
        format, and return the problems.

        Returns:
            A list of problems, empty if nothing is damaged. A missing shard is not damage.
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
        parts = [self._files.mapped(shard, path).astype(np.int64) for shard in self._records]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def __repr__(self) -> str:
        said = f"{self.shards_done} of {self.shards_planned} shards, " if self.shards_done < self.shards_planned else ""
        rows = self.identity["extraction"].get("rows", "")
        return (
            f"Store {self.path}: {said}{self.n_rows:,} rows ({rows}) at {shortly(self.sites)}, "
            f"of {model_called(self.identity['model'])}"
        )

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [
            ("model", model_called(self.identity["model"])),
            ("corpus", self.identity["corpus"].get("source", "")),
            ("sites", f"{len(self.sites)}: {some(self.sites)}"),
            ("rows", f"{len(self.rows.example):,}"),
            ("content", self.content_id[:12]),
        ]
        return card(f"Store {self.path}", rows)
