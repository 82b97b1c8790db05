"""Stores of every dtype, written once and kept for ever, decode exactly to what a formula says."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from probing.errors import IncompleteStore
from probing.states.store import Store, StoreWriter
from tests.conftest import ROOT
from tests.samples.golden_samples import (
    GOLDEN,
    LATENTS,
    MISSING,
    N_SHARDS,
    SITES,
    SKIPPED,
    STORES,
    Golden,
    content,
    examples_of,
    identity,
    latents,
    outputs,
    replay_rows,
)
from tests.samples.golden_samples import rows as golden_rows
from tests.samples.golden_samples import states as golden_states

all_stores = pytest.mark.parametrize("golden", STORES, ids=lambda golden: golden.name)


def same_bits(read: np.ndarray, truth: np.ndarray) -> bool:
    """Equal numbers, and -0 is not 0."""
    return read.dtype == np.float32 and read.tobytes() == truth.astype(np.float32).tobytes()


@all_stores
@pytest.mark.parametrize("verification", ["off", "fast", "full"])
def test_states_decode_exactly(golden: Golden, verification: str) -> None:
    store = Store.open(GOLDEN / golden.name, allow_partial=golden.name == "partial", verification=verification)
    assert store.verify() == []
    for site in golden.sites:
        width = SITES[site]
        truth = golden_states(site, golden.shards, golden.dtype)
        assert truth.shape == (store.n_rows, width) and store.width(site) == width
        assert same_bits(store.read(site), truth)
        backwards = np.arange(store.n_rows)[::-1]
        assert same_bits(store.read(site, backwards), truth[::-1])


@all_stores
def test_rows_and_reports_decode_exactly(golden: Golden) -> None:
    store = Store.open(GOLDEN / golden.name, allow_partial=True)
    for name, column in golden_rows(golden.shards).items():
        assert getattr(store.rows, name).tolist() == column
    is_whole = 0 in golden.shards
    assert store.skipped == ([SKIPPED] if is_whole else [])
    assert store.missing_words == ([MISSING] if is_whole else [])
    assert store.identity == identity(golden)
    assert store.sites == tuple(site for site in ("embed", "resid.2", "resid.10") if site in golden.sites)
    assert (store.shards_done, store.shards_planned) == (len(golden.shards), N_SHARDS)


def test_the_formula_runs_over_the_whole_range_of_each_dtype() -> None:
    for dtype, limits in {"float16": np.finfo(np.float16), "float32": np.finfo(np.float32)}.items():
        states = np.concatenate([golden_states(site, (0, 1), dtype).ravel() for site in SITES])
        assert states.max() == limits.max and states.min() == -limits.max
        assert np.abs(states[states != 0]).min() == limits.smallest_subnormal
        assert len(np.unique(states)) > 500 and np.signbit(states[states == 0]).any()


def test_what_the_model_was_given_and_its_outputs_decode_exactly() -> None:
    store = Store.open(GOLDEN / "replay", verification="full")
    for shard in range(N_SHARDS):
        for name, column in replay_rows((shard,)).items():
            assert store.dataset(shard, f"/rows/{name}").tolist() == column
        for name, truth in outputs(shard).items():
            read = store.dataset(shard, f"/outputs/{name}")
            assert read.tobytes() == truth.astype(read.dtype).tobytes() and read.shape == truth.shape
        assert store.dataset(shard, "/examples/batch").tolist() == [[e % 2, 30] for e in examples_of(shard)]


def test_latents_decode_exactly(tmp_path: Path) -> None:
    store, truth = Store.open(GOLDEN / "latents", verification="full"), latents((0, 1))
    assert store.role == "latents" and store.verify() == [] and store.width("resid.10") == truth.shape[1]
    assert store.latents().nnz == (truth != 0).sum() and store.latents().has_sorted_indices
    order = np.random.default_rng(0).permutation(store.n_rows)
    for rows in (None, order, order[:3], order[:0], np.array([2, 2, 0])):
        wanted = truth if rows is None else truth[rows]
        assert same_bits(store.latents(rows).toarray(), wanted) and same_bits(store.read("resid.10", rows), wanted)
    assert same_bits(np.concatenate([states for _, states in store.blocks("resid.10", block_rows=7)]), truth)
    assert store.identity == identity(LATENTS) and store.skipped == [SKIPPED]
    for shard in LATENTS.shards:
        (file,) = (GOLDEN / "latents" / "shards").glob(f"s{shard:06d}.*.h5")
        with h5py.File(file) as opened:
            indptr, indices, values = (opened[f"latents/{name}"][:] for name in ("indptr", "indices", "values"))
        assert (indptr.dtype, indices.dtype) == (np.uint64, np.uint16) and indptr[-1] == len(indices) == len(values)
    writer = StoreWriter.open(tmp_path / "latents", identity=identity(LATENTS), environment={})
    for shard in LATENTS.shards:
        writer.commit(shard, content(shard, LATENTS))
    new = Store.open(tmp_path / "latents")
    assert same_bits(new.latents().toarray(), truth) and new.store_id == store.store_id
    if store.environment["hdf5"] == h5py.version.hdf5_version:
        assert new.content_id == store.content_id


def test_a_partial_store_is_refused_unless_asked_for() -> None:
    with pytest.raises(IncompleteStore):
        Store.open(GOLDEN / "partial")


@all_stores
def test_other_hdf5_tools_read_the_same_numbers(golden: Golden) -> None:
    for shard in golden.shards:
        (file,) = (GOLDEN / golden.name / "shards").glob(f"s{shard:06d}.*.h5")
        with h5py.File(file) as opened:
            for site in golden.sites:
                read = opened[f"sites/{site}"].astype(np.float32)[:]
                assert np.array_equal(read, golden_states(site, (shard,), golden.dtype))


@all_stores
def test_the_writer_still_writes_the_same(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / golden.name
    writer = StoreWriter.open(path, identity=identity(golden), environment={})
    for shard in golden.shards:
        writer.commit(shard, content(shard, golden))
    old, new = Store.open(GOLDEN / golden.name, allow_partial=True), Store.open(path, allow_partial=True)
    assert new.store_id == old.store_id
    for site in golden.sites:
        assert same_bits(new.read(site), golden_states(site, golden.shards, golden.dtype))
    if old.environment["hdf5"] == h5py.version.hdf5_version:  # bytes are promised within one version of HDF5
        assert new.content_id == old.content_id


@pytest.mark.parametrize("golden", STORES[:3], ids=lambda golden: golden.name)
def test_an_old_store_goes_on_where_it_was(golden: Golden, tmp_path: Path) -> None:
    path = Path(shutil.copytree(GOLDEN / golden.name, tmp_path / golden.name))
    (path / "seal.json").unlink()
    (path / "shards" / "s000001.json").unlink()
    writer = StoreWriter.open(path, identity=identity(golden), environment={})
    assert writer.missing() == [1]
    writer.commit(1, content(1, golden))
    writer.seal()
    assert same_bits(Store.open(path).read("resid.2"), golden_states("resid.2", (0, 1), golden.dtype))


def test_golden_stores_stay_small_and_are_not_written_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in GOLDEN.rglob("*") if file.is_file()}
    assert sum(map(len, before.values())) < 240_000
    spec = importlib.util.spec_from_file_location("make_golden_stores", ROOT / "scripts" / "make_golden_stores.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr("sys.argv", ["make_golden_stores.py"])
    script.main()
    assert capsys.readouterr().out.count("stays as it is") == len(STORES) + 1
    assert before == {file: file.read_bytes() for file in GOLDEN.rglob("*") if file.is_file()}
