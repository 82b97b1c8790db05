"""Laws of row blocks: together they are the states, none is larger than asked for, and threads do not interfere."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from probing.errors import BadParameter, CorruptShard, UnknownSite
from probing.states.store import Store
from tests.samples.store_samples import SITES, whole, write

DTYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_rows", [1, 7, 10_000])
def test_blocks_laid_end_to_end_are_the_states(tmp_path: Path, dtype: str, block_rows: int) -> None:
    write(tmp_path / "s", dtype)
    store = Store.open(tmp_path / "s")
    order = np.random.default_rng(0).permutation(store.n_rows)
    for rows in (None, order, order[:0]):
        blocks = list(store.blocks("resid.2", rows, block_rows=block_rows))
        assert all(len(numbers) == len(states) <= block_rows for numbers, states in blocks)
        assert all(states.dtype == np.float32 and states.flags.c_contiguous for _, states in blocks)
        numbers = np.concatenate([np.zeros(0, np.int64), *(n for n, _ in blocks)])
        np.testing.assert_array_equal(numbers, np.arange(store.n_rows) if rows is None else rows)
        if len(numbers):
            np.testing.assert_array_equal(np.concatenate([s for _, s in blocks]), store.read("resid.2", numbers))


def test_blocks_of_a_float32_store_are_views_of_the_file_and_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path / "s")
    for _, states in Store.open(tmp_path / "s").blocks("resid.2"):
        assert states.base is not None and not states.flags.owndata and not states.flags.writeable


def test_a_damaged_block_is_not_given(tmp_path: Path) -> None:
    write(tmp_path / "s")
    store = Store.open(tmp_path / "s")
    entry = store._records[1]["datasets"]["/sites/resid.2"]
    file = sorted((tmp_path / "s" / "shards").glob("*.h5"))[1]
    data = bytearray(file.read_bytes())
    data[entry["offset"] + 11] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptShard, match=r"resid\.2"):
        list(store.blocks("resid.2"))


def test_bad_arguments_are_refused_before_the_first_block(tmp_path: Path) -> None:
    write(tmp_path / "s")
    store = Store.open(tmp_path / "s")
    with pytest.raises(UnknownSite):
        store.blocks("resid.3")
    with pytest.raises(BadParameter, match="out of range"):
        store.blocks("resid.2", np.array([store.n_rows]))
    with pytest.raises(BadParameter, match="at least 1"):
        store.blocks("resid.2", block_rows=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_threads_that_share_a_store_each_read_what_one_reads(tmp_path: Path, dtype: str) -> None:
    write(tmp_path / "s", dtype)
    alone = Store.open(tmp_path / "s")
    expected = {site: alone.read(site) for site in SITES}
    store = Store.open(tmp_path / "s")  # nothing of it was checked or cached yet

    def job(k: int) -> bool:
        site, rng = SITES[k % len(SITES)], np.random.default_rng(k)
        rows = rng.permutation(alone.n_rows)
        same = [
            np.array_equal(x, expected[site][n]) for n, x in store.blocks(site, None if k % 2 else rows, block_rows=5)
        ]
        return all(same) and np.array_equal(store.rows.example, alone.rows.example)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(job, range(48)))
    if dtype == "float32":
        np.testing.assert_array_equal(expected["embed"], whole("embed"))
