"""Laws of the activation store: what is written is read, and nothing else is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from probing.errors import (
    BadParameter,
    CorruptShard,
    DiskFull,
    IncompleteStore,
    NonFiniteStates,
    NotAStore,
    NotRepresentable,
    ProvenanceMismatch,
    UnknownSite,
    UnsupportedFormat,
)
from probing.states.store import FileOps, Store, StoreWriter, list_stores, narrow, store_info
from probing.states.store.format import parse_signed, read_store_json, shard_file, signed_json, widen
from probing.states.store.verify import verify_shard
from tests.samples import store_samples as sample


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "golden"
    sample.write(path)
    return path


@pytest.fixture
def store_path(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / "copy"))


def shard_path(path: Path, shard: int) -> Path:
    return path / "shards" / json.loads((path / "shards" / f"s{shard:06d}.json").read_bytes())["file"]


def flip(file: Path, position: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


def edit_record(path: Path, shard: int, **changes: Any) -> None:
    """A forged record: changed, with a matching self_sha256."""
    file = path / "shards" / f"s{shard:06d}.json"
    file.write_bytes(signed_json({**parse_signed(file.read_bytes()), **changes}))


def forge_shard(path: Path, shard: int, source: Path) -> None:
    """Put another file in a shard's place, with a record that agrees with its bytes."""
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    shutil.copy(source, path / "shards" / shard_file(shard, sha256))
    edit_record(path, shard, sha256=sha256, file=shard_file(shard, sha256), bytes=source.stat().st_size)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_states_read_are_the_states_written_in_every_dtype(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "store"
    sample.write(path, dtype)
    store = Store.open(path, verification="full")
    relative = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for site in sample.SITES:
        read, truth = store.read(site), sample.whole(site)
        assert read.dtype == np.float32 and read.shape == truth.shape == (store.n_rows, store.width(site))
        assert (np.abs(read - truth) <= relative * np.abs(truth) + (1e-7 if dtype == "float16" else 0)).all()
    assert store.verify() == []


def test_row_subsets_equal_the_rows_of_the_whole(golden: Path) -> None:
    store = Store.open(golden)
    rows = np.random.default_rng(0).integers(0, store.n_rows, 200)
    assert np.array_equal(store.read("embed", rows), sample.whole("embed")[rows])
    assert store.read("embed", np.empty(0, np.int64)).shape == (0, sample.WIDTH)
    for bad in ([-1], [store.n_rows], [0.5], [[0]]):
        with pytest.raises(BadParameter):
            store.read("embed", np.array(bad))


def test_row_table_and_lists_are_those_written(golden: Path) -> None:
    store = Store.open(golden)
    for name in ("example", "word", "piece_start", "piece_end", "char_start", "char_end"):
        written = np.concatenate([sample.content(shard).rows[name] for shard in range(sample.N_SHARDS)])
        assert getattr(store.rows, name).dtype == np.int64
        assert np.array_equal(getattr(store.rows, name), written)
    assert sample.SKIPPED not in store.rows.example
    assert store.skipped == [(sample.SKIPPED, "too_long")]
    assert store.missing_words == [(6, 3, "no_pieces")]
    assert store.sites == ("embed", "resid.2", "resid.10")
    assert store.identity == sample.identity()


def test_unknown_site_names_the_nearest(golden: Path) -> None:
    with pytest.raises(UnknownSite, match=r"resid\.2"):
        Store.open(golden).read("resid.22")


def test_same_content_gives_same_bytes_at_any_time(golden: Path, tmp_path: Path) -> None:
    time.sleep(1.1)  # HDF5 time stamps count seconds
    sample.write(tmp_path / "again")
    for shard in range(sample.N_SHARDS):
        assert shard_path(golden, shard).read_bytes() == shard_path(tmp_path / "again", shard).read_bytes()
    assert Store.open(golden).content_id == Store.open(tmp_path / "again").content_id


def test_hdf5_reads_the_same_numbers_and_finds_what_the_format_promises(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        path = tmp_path / dtype
        sample.write(path, dtype)
        with h5py.File(shard_path(path, 0), "r") as file:
            dataset = file["/sites/resid.10"]
            n_rows = int(file.attrs["n_rows"])
            assert np.array_equal(dataset.astype("f4")[()], Store.open(path).read("resid.10")[:n_rows])
            assert dataset.attrs["order"] == 2 and dataset.attrs["dtype"] == dtype.encode()
            assert dataset.id.get_storage_size() < 4096 or dataset.id.get_offset() % 4096 == 0
            assert file.attrs["store_id"] == Store.open(path).store_id.encode()


def test_a_shard_without_rows_is_legal(tmp_path: Path) -> None:
    full = sample.content(0)
    empty = dataclasses.replace(
        full,
        rows={name: array[:0] for name, array in full.rows.items()},
        examples={**full.examples, "offset": np.zeros(sample.EXAMPLES + 1, int)},
        sites={site: array[:0] for site, array in full.sites.items()},
    )
    writer = StoreWriter.open(tmp_path / "store", identity=sample.identity(n_shards=1), environment={})
    writer.commit(0, empty)
    store = Store.open(tmp_path / "store")
    assert store.read("embed").shape == (0, sample.WIDTH) and store.rows.word.shape == (0,)
    assert store.verify() == []


def test_partial_store_gives_both_counts_then_resumes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writer = StoreWriter.open(path, identity=sample.identity(), environment={})
    assert writer.n_shards == 3 and writer.missing() == [0, 1, 2]
    writer.commit(1, sample.content(1))
    with pytest.raises(IncompleteStore) as refused:
        Store.open(path)
    assert "3" in refused.value.needed and "1" in refused.value.found
    with pytest.raises(IncompleteStore):
        writer.seal()
    partial = Store.open(path, allow_partial=True)
    assert (partial.shards_done, partial.shards_planned) == (1, 3)
    assert np.array_equal(partial.read("embed"), sample.content(1).sites["embed"])
    kept = shard_path(path, 1).stat().st_mtime_ns
    sample.write(path)
    assert np.array_equal(Store.open(path).read("embed"), sample.whole("embed"))
    assert shard_path(path, 1).stat().st_mtime_ns == kept


def test_another_identity_is_refused_by_its_keys(store_path: Path) -> None:
    before = sorted(store_path.rglob("*"))
    with pytest.raises(ProvenanceMismatch, match=r"model\.source"):
        StoreWriter.open(store_path, identity=sample.identity(model="other"), environment={})
    with pytest.raises(ProvenanceMismatch, match=r"extraction\.dtype"):
        StoreWriter.open(store_path, identity=sample.identity("float16"), environment={})
    assert sorted(store_path.rglob("*")) == before


def test_a_directory_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(NotAStore):
        StoreWriter.open(tmp_path / "thesis", identity=sample.identity(), environment={})
    with pytest.raises(NotAStore):
        StoreWriter.open(tmp_path / "thesis" / "chapter.txt", identity=sample.identity(), environment={})
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotAStore):
            Store.open(missing)


@pytest.mark.parametrize("name", ["-x", "a..b", "x.", "a b", "é", "a" * 101])
def test_names_that_are_not_portable_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadParameter):
        StoreWriter.open(tmp_path / name, identity=sample.identity(), environment={})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"plan": {"starts": [0, 0], "count": 8}},
        {"plan": {"starts": [0, 4], "count": 4}},
        {"plan": {"starts": [0, True], "count": 4}},
        {"extraction": {"sites": [], "dtype": "float32"}},
        {"extraction": {"sites": ["embed"], "dtype": "float64"}},
        {"model": {"rate": 0.5}},
    ],
)
def test_an_identity_that_cannot_be_kept_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        StoreWriter.open(tmp_path / "store", identity=sample.identity() | change, environment={})
    assert not (tmp_path / "store").exists()


def test_content_that_contradicts_itself_or_the_plan_is_refused(tmp_path: Path) -> None:
    writer = StoreWriter.open(tmp_path / "store", identity=sample.identity(), environment={})
    good = sample.content(0)
    bad = [
        sample.content(1),
        dataclasses.replace(good, sites={"embed": good.sites["embed"]}),
        dataclasses.replace(good, sites={site: array[1:] for site, array in good.sites.items()}),
        dataclasses.replace(good, sites={site: array.astype("f2") for site, array in good.sites.items()}),
        dataclasses.replace(good, rows={**good.rows, "example": good.rows["example"][::-1]}),
        dataclasses.replace(good, rows={**good.rows, "char_start": good.rows["char_start"] - 1}),
        dataclasses.replace(good, examples={**good.examples, "offset": good.examples["offset"][::-1]}),
        dataclasses.replace(good, skipped=[(0, "lazy")]),
    ]
    for content in bad:
        with pytest.raises(BadParameter):
            writer.commit(0, content)
    assert writer.missing() == [0, 1, 2] and not any((tmp_path / "store" / "shards").iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_non_finite_states_are_refused_with_site_count_and_first_row(tmp_path: Path, dtype: str) -> None:
    good = sample.content(0, dtype)
    spoiled = good.sites["resid.2"].copy()
    first = int(good.examples["offset"][2]) + 3
    bits = {"float32": np.nan, "float16": -np.inf, "bfloat16": 0xFF80}[dtype]
    spoiled[first, 7] = spoiled[first + 1, 0] = bits
    writer = StoreWriter.open(tmp_path / "store", identity=sample.identity(dtype), environment={})
    with pytest.raises(NonFiniteStates) as refused:
        writer.commit(0, dataclasses.replace(good, sites={**good.sites, "resid.2": spoiled}))
    assert "2 of" in refused.value.message and "resid.2" in refused.value.where
    assert refused.value.found == "first in example 2, word 3"
    assert writer.missing() == [0, 1, 2]


def test_narrowing_rounds_to_nearest_even_and_refuses_overflow() -> None:
    values = np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -2.5, 0.0, -0.0], np.float32)[:, None]
    assert [hex(int(bits)) for bits in narrow(values, "bfloat16", "embed").ravel()] == [
        "0x3f80",
        "0x3f80",
        "0x3f82",
        "0xc020",
        "0x0",
        "0x8000",
    ]
    assert (narrow(np.full((1, 1), 65504, np.float32), "float16", "embed") == 65504).all()
    with pytest.raises(NotRepresentable, match="bfloat16") as refused:
        narrow(np.full((2, 2), -70000, np.float32), "float16", "resid.3")
    assert "70000" in refused.value.found and "resid.3" in refused.value.where
    with pytest.raises(NotRepresentable):
        narrow(np.full((1, 1), np.finfo(np.float32).max, np.float32), "bfloat16", "embed")
    assert np.isnan(narrow(np.full((1, 1), np.nan, np.float32), "float16", "embed")).all()
    for bits in (0x7FFF_FFFF, 0xFFFF_FFFF, 0x7F80_0001, 0xFFC0_0000):
        (found,) = narrow(np.array([[bits]], np.uint32).view(np.float32), "bfloat16", "embed").ravel()
        assert np.isnan(widen(np.array([found]), "bfloat16")).all(), hex(bits)


def test_every_flipped_bit_of_a_dataset_is_found_at_first_read_and_by_verify(store_path: Path) -> None:
    record = parse_signed((store_path / "shards" / "s000001.json").read_bytes())
    rng = np.random.default_rng(1)
    for dataset, entry in record["datasets"].items():
        position = entry["offset"] + int(rng.integers(entry["nbytes"]))
        flip(shard_path(store_path, 1), position, 3)
        store = Store.open(store_path)
        if dataset.startswith("/sites/"):
            site = dataset.removeprefix("/sites/")
            for rows in (None, np.array([store.n_rows // 2])):
                with pytest.raises(CorruptShard, match=rf"shard 1 .*{dataset}"):
                    store.read(site, rows)
        elif dataset.startswith("/rows/"):
            with pytest.raises(CorruptShard, match=rf"shard 1 .*{dataset}"):
                _ = store.rows
        assert any("shard 1" in problem for problem in store.verify())
        with pytest.raises(CorruptShard):
            Store.open(store_path, verification="full").read("resid.10")
        flip(shard_path(store_path, 1), position, 3)
    assert Store.open(store_path).verify() == []


def test_a_flip_anywhere_in_the_shard_is_found_at_full(store_path: Path) -> None:
    file = shard_path(store_path, 0)
    for position in np.random.default_rng(2).integers(0, file.stat().st_size, 40):
        flip(file, int(position), 6)
        assert Store.open(store_path).verify()
        flip(file, int(position), 6)


def test_a_flip_anywhere_in_the_json_is_found_at_open(store_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name in ("store.json", "shards/s000002.json"):
        file = store_path / name
        for position in rng.integers(0, file.stat().st_size, 60):
            whole = file.read_bytes()
            flip(file, int(position), int(rng.integers(8)))
            with pytest.raises((CorruptShard, NotAStore)):
                Store.open(store_path)
            file.write_bytes(whole)
    flip(store_path / "seal.json", 100)
    assert any("seal.json" in problem for problem in Store.open(store_path).verify())


def test_truncated_missing_and_swapped_shards_are_found_at_open(store_path: Path) -> None:
    file = shard_path(store_path, 1)
    whole = file.read_bytes()
    for length in (0, 1, 4096, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CorruptShard, match="shard 1"):
            Store.open(store_path, verification="off")
    file.unlink()
    with pytest.raises(CorruptShard, match="shard 1"):
        Store.open(store_path, allow_partial=True)
    file.write_bytes(whole)
    opened = Store.open(store_path)
    file.write_bytes(whole[:5000])
    with pytest.raises(CorruptShard, match="shard 1"):
        opened.read("embed")
    file.write_bytes(whole)
    record = store_path / "shards" / "s000002.json"
    record.write_bytes((store_path / "shards" / "s000000.json").read_bytes())
    with pytest.raises(CorruptShard, match="shard 2"):
        Store.open(store_path)


@pytest.mark.parametrize(
    ("dataset", "change"),
    [
        ("/sites/embed", {"offset": 1 << 40}),
        ("/sites/embed", {"offset": -4096}),
        ("/sites/embed", {"nbytes": 8}),
        ("/sites/embed", {"shape": [3, 40]}),
        ("/sites/embed", {"shape": [True, 40]}),
        ("/sites/embed", {"dtype": "float16"}),
        ("/rows/word", {"offset": 10**9}),
        ("/rows/word", {"shape": [5]}),
    ],
)
def test_forged_records_never_lead_outside_their_dataset(
    store_path: Path, dataset: str, change: dict[str, Any]
) -> None:
    datasets = parse_signed((store_path / "shards" / "s000000.json").read_bytes())["datasets"]
    edit_record(store_path, 0, datasets={**datasets, dataset: {**datasets[dataset], **change}})
    with pytest.raises(CorruptShard, match=dataset):
        Store.open(store_path)


@pytest.mark.parametrize("absmax", [None, [1.0], "large", True])
def test_a_record_that_does_not_say_how_large_its_states_are_is_refused(store_path: Path, absmax: Any) -> None:
    facts = parse_signed((store_path / "shards" / "s000000.json").read_bytes())["sites"]
    edit_record(store_path, 0, sites={**facts, "embed": {**facts["embed"], "absmax": absmax}})
    with pytest.raises(CorruptShard, match="how large"):
        Store.open(store_path)
    assert store_info(store_path)["damaged_shards"] == [0]


def test_overlapping_datasets_and_foreign_file_names_are_refused(store_path: Path) -> None:
    datasets = parse_signed((store_path / "shards" / "s000000.json").read_bytes())["datasets"]
    moved = {**datasets["/sites/embed"], "offset": datasets["/sites/resid.2"]["offset"]}
    edit_record(store_path, 0, datasets={**datasets, "/sites/embed": moved})
    with pytest.raises(CorruptShard, match="overlap"):
        Store.open(store_path)
    edit_record(store_path, 0, datasets=datasets, file="../../secret")
    with pytest.raises(CorruptShard, match="secret"):
        Store.open(store_path)


def _external_link(file: Any) -> None:
    del file["/sites/embed"]
    file["/sites/embed"] = h5py.ExternalLink("canary.h5", "/secret")


def _soft_link(file: Any) -> None:
    file["/sites/other"] = h5py.SoftLink("/sites/embed")


def _external_storage(file: Any) -> None:
    shape = file["/rows/word"].shape
    del file["/rows/word"]
    file.create_dataset("/rows/word", shape, "<i4", external=[("canary.bin", 0, 1 << 20)])


def _virtual(file: Any) -> None:
    shape = file["/rows/word"].shape
    del file["/rows/word"]
    layout = h5py.VirtualLayout(shape, "<i4")
    layout[:] = h5py.VirtualSource(".", "/rows/example", shape)
    file.create_virtual_dataset("/rows/word", layout)


def _compressed(file: Any) -> None:
    values = file["/rows/word"][()]
    del file["/rows/word"]
    file.create_dataset("/rows/word", data=values, compression="gzip")


def _extra(file: Any) -> None:
    file.create_dataset("/rows/more", data=np.zeros(3, "<i4"))


def _second_name(file: Any) -> None:
    file["/rows/loop"] = file["/"]


def _odd_attribute(file: Any) -> None:
    file["/sites/embed"].attrs["note"] = "text of variable length"


def _other_value(file: Any) -> None:
    file["/sites/embed"].attrs["absmax"] = 0.25


def _other_type(file: Any) -> None:
    values = file["/rows/word"][()]
    del file["/rows/word"]
    file.create_dataset("/rows/word", data=values.astype(">i4"))


@pytest.mark.parametrize(
    "spoil",
    [
        _external_link,
        _soft_link,
        _external_storage,
        _virtual,
        _compressed,
        _extra,
        _second_name,
        _odd_attribute,
        _other_value,
        _other_type,
    ],
)
def test_hostile_hdf5_with_a_matching_record_is_refused_by_verify(store_path: Path, tmp_path: Path, spoil: Any) -> None:
    forged = tmp_path / "forged.h5"
    shutil.copy(shard_path(store_path, 0), forged)
    forge_shard(store_path, 0, forged)
    (store_path / "seal.json").unlink()
    assert Store.open(store_path).verify() == []
    with h5py.File(forged, "r+") as file:
        spoil(file)
    forge_shard(store_path, 0, forged)
    assert any("shard 0" in problem for problem in Store.open(store_path).verify())


def test_bytes_that_are_no_hdf5_are_a_problem_not_a_crash(store_path: Path, tmp_path: Path) -> None:
    _, recipe = read_store_json(store_path)
    good = shard_path(store_path, 0).read_bytes()
    rng = np.random.default_rng(4)
    for _ in range(60):
        spoiled = bytearray(good)
        for position in rng.integers(0, 4096, 4):
            spoiled[position] = rng.integers(256)
        forged = tmp_path / "forged.h5"
        forged.write_bytes(spoiled)
        forge_shard(store_path, 0, forged)
        record = parse_signed((store_path / "shards" / "s000000.json").read_bytes())
        assert isinstance(verify_shard(store_path, recipe, record), list)


def test_a_damaged_record_is_set_aside_and_its_shard_computed_again(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (store_path / "shards" / "s000001.json").write_text("{}")
    writer = StoreWriter.open(store_path, identity=sample.identity(), environment={})
    assert writer.withdrawn == (1,) and writer.missing() == [1]
    assert "shard 1" in caplog.text
    assert not (store_path / "seal.json").exists()
    assert any(entry.name.startswith(".bad-") for entry in (store_path / "shards").iterdir())
    sample.write(store_path)
    store = Store.open(store_path)
    assert store.verify() == [] and np.array_equal(store.read("embed"), sample.whole("embed"))


def test_only_abandoned_temporary_files_are_swept(store_path: Path) -> None:
    folder, host = store_path / "shards", os.uname().nodename
    kept = [f".tmp-{host}-{os.getpid()}-00000000", ".tmp-elsewhere-1-00000000", "notes.txt", ".tmp-odd"]
    gone = [f".tmp-{host}-4194305-00000000", ".tmp-elsewhere-1-11111111"]
    for name in kept + gone:
        (folder / name).write_bytes(b"x")
    os.utime(folder / gone[1], (0, 0))
    sample.write(store_path)
    names = {entry.name for entry in folder.iterdir()}
    assert names >= set(kept) and not names & set(gone)


def test_racing_writers_adopt_the_first_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    first, second = (StoreWriter.open(path, identity=sample.identity(), environment={}) for _ in range(2))
    assert second.missing() == [0, 1, 2]
    other = sample.content(0)
    other = dataclasses.replace(other, sites={site: array + np.float32(1e-6) for site, array in other.sites.items()})
    look = StoreWriter._is_done

    def race(self: StoreWriter, shard: int) -> bool:
        """Just after the second writer has looked, the first commits."""
        monkeypatch.setattr(StoreWriter, "_is_done", look)
        first.commit(0, sample.content(0))
        return False

    monkeypatch.setattr(StoreWriter, "_is_done", race)
    second.commit(0, other)
    record = parse_signed((path / "shards" / "s000000.json").read_bytes())
    assert record["sha256"] == first._done[0]["sha256"] == second._done[0]["sha256"]
    assert len(list((path / "shards").glob("s000000.*.h5"))) == 2
    sample.write(path)
    store = Store.open(path)
    assert np.array_equal(store.read("embed"), sample.whole("embed")) and store.verify() == []


def test_file_systems_without_hard_links_work(tmp_path: Path) -> None:
    class NoLinks(FileOps):
        def link(self, source: Path, target: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

    sample.write(tmp_path / "store", files=NoLinks())
    assert np.array_equal(Store.open(tmp_path / "store").read("embed"), sample.whole("embed"))
    assert Store.open(tmp_path / "store").verify() == []


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Small(FileOps):
        def free_bytes(self, path: Path) -> int:
            return 1 << 20

    writer = StoreWriter.open(tmp_path / "store", identity=sample.identity(), environment={}, files=Small())
    with pytest.raises(DiskFull, match="1,048,576"):
        writer.commit(0, sample.content(0))
    assert not any((tmp_path / "store" / "shards").iterdir())


def test_another_major_version_or_format_is_refused_a_minor_one_read(store_path: Path) -> None:
    file = store_path / "store.json"
    header = parse_signed(file.read_bytes())
    file.write_bytes(signed_json({**header, "format_version": "1.7", "news": 1}))
    assert Store.open(store_path).verify() == []
    file.write_bytes(signed_json({**header, "format_version": "2.0"}))
    with pytest.raises(UnsupportedFormat, match=r"2\.0"):
        Store.open(store_path)
    file.write_bytes(signed_json({**header, "format": "something"}))
    with pytest.raises(NotAStore):
        Store.open(store_path)


def test_info_counts_reasons_and_gives_the_largest_magnitude(store_path: Path) -> None:
    info = store_info(store_path)
    assert (info["model"], info["corpus"], info["rows"]) == ("made-up", "made-up text", "word:mean")
    assert info["sites"] == ["embed", "resid.2", "resid.10"]
    assert (info["shards_done"], info["shards_planned"]) == (3, 3)
    assert info["n_rows"] == Store.open(store_path).n_rows
    assert info["bytes"] == sum(shard_path(store_path, shard).stat().st_size for shard in range(3))
    assert info["skipped"] == {"too_long": 1} and info["missing_words"] == {"no_pieces": 1}
    assert info["absmax"] == {site: float(np.abs(sample.whole(site)).max()) for site in sample.SITES}
    (store_path / "shards" / "s000001.json").write_text("{}")
    assert store_info(store_path)["damaged_shards"] == [1]


def test_listing_finds_stores_and_survives_a_broken_one(store_path: Path) -> None:
    broken = store_path.parent / "broken"
    broken.mkdir()
    (broken / "store.json").write_text("{}")
    found = list_stores(store_path.parent)
    assert [Path(info["path"]).name for info in found] == ["broken", "copy"]
    assert "problem" in found[0] and found[1]["shards_done"] == 3
    assert [info["path"] for info in list_stores(store_path)] == [str(store_path)]
    assert list_stores(store_path.parent / "nowhere") == []
