"""Gathering moments: over a store's shards in shard order, or shard by shard while an extraction writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from probing.errors import BadParameter, CorruptShard, ProvenanceMismatch, UnknownName, unknown_name
from probing.models.site import select_sites
from probing.provenance import environment
from probing.states.store import FileOps, Moments, ShardContent, Store
from probing.states.store.commit_record import incomplete
from probing.states.store.file_ops import REAL_FILES
from probing.states.store.format import widen
from probing.states.store.moments import BLOCK_ROWS, Chosen, Sums
from probing.states.store.moments_files import check_selection
from probing.text.corpus import Corpus

LIVE_BYTES = 2 << 30
EVERY = "all"


def selected(corpus: Corpus, selection: str) -> NDArray[np.bool_]:
    """Return, by ordinal, whether an example is in a split of that name; `all` selects every example.

    Raises:
        BadParameter: no such split, with the nearest, or a name that is no file name.
    """
    check_selection(selection)
    if selection != EVERY and selection not in corpus.splits:
        raise unknown_name("selection", selection, [EVERY, *corpus.splits], where=corpus.source, error=BadParameter)
    return np.array([selection in (EVERY, example.split) for example in corpus.examples], dtype=bool)


def gather_moments(
    store: Store, corpus: Corpus, *, selection: str = "train", sites: str | Sequence[str] = "*",
    files: FileOps = REAL_FILES,
) -> list[Moments]:  # fmt: skip
    """Gather the moments of a finished store's sites over a split and keep them in the store; what is there and fresh
    is not made again.

    One site at a time: memory holds its D×D sums and 1024 rows, however many rows there are.

    Args:
        store: a finished store.
        corpus: the corpus it was made from; its splits say what is chosen.
        selection: a split, or `all`.
        sites: shell-style patterns, comma-separated or a list.
        files: seam for tests.

    Raises:
        BadParameter: no such split.
        IncompleteStore: shards are missing.
        UnknownSite: a pattern that matches no site.
        ProvenanceMismatch: another corpus.
    """
    _check(store, corpus)
    gathering = Gathering(select_sites(sites, store.sites), corpus, selection)
    return gathering.finish(store, files=files)


def _check(store: Store, corpus: Corpus) -> None:
    if store.identity["corpus"]["fingerprint"] != corpus.fingerprint:
        raise ProvenanceMismatch(
            "this is another corpus than the store's", needed=f"corpus of {store.identity['corpus']['source']}",
            found=corpus.source, where=str(store.path), next_step="give the files that were extracted",
        )  # fmt: skip


class Gathering:
    """Moments of several sites over one selection, in the making.

    While an extraction runs, `add` takes each shard that it has just committed, in shard order; shards in front of it
    that were there before are read from the disk. `finish` reads whatever is lacking: shards that other processes
    wrote, that came out of order, or everything, site by site, where the sums of all sites together would not fit in
    `LIVE_BYTES`. The order of additions is always the same, and so are the bytes.
    """

    def __init__(self, sites: Sequence[str], corpus: Corpus, selection: str) -> None:
        """Choose the examples of the selection.

        Args:
            sites: site names.
            corpus: all of it.
            selection: a split, or `all`.

        Raises:
            BadParameter: no such split.
        """
        self.sites = tuple(sites)
        self.selection = selection
        self._is_chosen = selected(corpus, selection)
        self._before: Store | None = None
        self._sums: dict[str, Sums] = {}
        self._added: list[dict[str, str]] = []  # by shard: what was added, as hashes by dataset

    def begin(self, before: Store) -> None:
        """Note which shards exist when an extraction begins, so that `add` may be called."""
        self._before = before

    def add(self, shard: int, content: ShardContent) -> None:
        """Add a shard whose content is still in memory; ignored if the shards in front of it cannot be added first."""
        widths = {site: content.sites[site].shape[1] for site in self.sites}
        lacking = range(len(self._added), shard)
        is_known = self._before is not None and all(k in self._before.shards for k in lacking)
        if shard < len(self._added) or not is_known or sum(8 * width**2 for width in widths.values()) > LIVE_BYTES:
            return
        self._sums = self._sums or {site: Sums(width) for site, width in widths.items()}
        for earlier in lacking:
            self._read(self._before, earlier, self._sums)  # type: ignore[arg-type]
            self._added.append(_recorded(self._before, earlier, self.sites))  # type: ignore[arg-type]
        ordinal, offset = (np.asarray(content.examples[name], dtype=np.int64) for name in ("ordinal", "offset"))
        chosen = Chosen.of(ordinal, offset, self._is_chosen)
        for site, sums in self._sums.items():
            sums.add_shard(_blocks(content.sites[site], chosen.rows), chosen)
        self._added.append(_hashes(content, self.sites))

    def finish(self, store: Store, *, files: FileOps = REAL_FILES) -> list[Moments]:
        """Read the shards that are lacking, and write the moments of each site.

        Raises:
            IncompleteStore: shards are missing.
            CorruptShard: a shard differs from its record.
            DiskFull: no room.
        """
        if store.shards_done < store.shards_planned:
            raise incomplete(store.path, store.shards_done, store.shards_planned)
        done = len(self._added)
        if self._added != [_recorded(store, shard, self.sites) for shard in store.shards[:done]]:
            done, self._sums = 0, {}  # another process was first with other bytes
        examples = [store.choose(shard, self._is_chosen).examples for shard in store.shards]
        return [self._finish_site(store, site, done, np.concatenate(examples), files) for site in self.sites]

    def _finish_site(self, store: Store, site: str, done: int, examples: NDArray[np.int64], files: FileOps) -> Moments:
        folder = store.moments_folder
        with suppress(UnknownName, CorruptShard, ProvenanceMismatch):
            there = folder.load(site, self.selection)
            if np.array_equal(there.examples, examples):
                return there
        sums = self._sums.pop(site) if done else Sums(store.width(site))
        for shard in store.shards[done:]:
            self._read(store, shard, {site: sums})
        folder.write(sums.moments(site, self.selection), environment(), files)
        return folder.load(site, self.selection)

    def _read(self, store: Store, shard: int, sums: Mapping[str, Sums]) -> None:
        chosen = store.choose(shard, self._is_chosen)
        for site, one in sums.items():
            one.add_shard((x for _, x in store.blocks(site, chosen.rows, block_rows=BLOCK_ROWS)), chosen)


def _blocks(stored: NDArray[Any], rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Yield the same blocks as a store gives of those rows."""
    dtype = "bfloat16" if stored.dtype == np.uint16 else str(stored.dtype)
    for first in range(0, len(rows), BLOCK_ROWS):
        yield widen(stored[rows[first : first + BLOCK_ROWS]], dtype)


def _hashes(content: ShardContent, sites: Sequence[str]) -> dict[str, str]:
    offset = np.ascontiguousarray(content.examples["offset"], dtype="<u8")
    arrays = {"/examples/offset": offset} | {f"/sites/{site}": content.sites[site] for site in sites}
    return {path: xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data) for path, array in arrays.items()}


def _recorded(store: Store, shard: int, sites: Sequence[str]) -> dict[str, str]:
    datasets = store.moments_folder.records[shard]["datasets"]
    return {path: datasets[path]["xxh3_128"] for path in ("/examples/offset", *(f"/sites/{site}" for site in sites))}
