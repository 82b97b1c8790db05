"""Laws of keeping stores: parts join into the whole, repair loses nothing sound, deletion touches nothing foreign."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from probing.cli.commands import app
from probing.errors import (
    BadParameter,
    CorruptShard,
    IncompleteStore,
    NotAStore,
    ProvenanceMismatch,
    StoreBusy,
    StoreError,
)
from probing.states.store import Store, StoreWriter, collect, garbage, merge, remove, repair
from probing.states.store.export import export
from tests.samples.store_samples import N_SHARDS, SITES, content, identity, whole, write

DAY = 24 * 3600


def part(path: Path, *shards: int, device: str = "cpu") -> Path:
    writer = StoreWriter.open(path, identity=identity(), environment={"device": device})
    for shard in shards:
        writer.commit(shard, content(shard))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "s")
    return tmp_path / "s"


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def age(file: Path, seconds: float = DAY + 60) -> Path:
    os.utime(file, (time.time() - seconds,) * 2)
    return file


def flip(file: Path, place: int = -5) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def shard_files(path: Path) -> list[Path]:
    return sorted((path / "shards").glob("s*.h5"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_merged_parts_are_the_store_that_one_process_makes(tmp_path: Path, store: Path, order: tuple[int, ...]) -> None:
    for step, shard in enumerate(order):
        assert merge(tmp_path / "m", part(tmp_path / f"p{shard}", shard)) == [shard]
        assert (tmp_path / "m" / "seal.json").exists() == (step == N_SHARDS - 1)
    merged, alone = Store.open(tmp_path / "m", verification="full"), Store.open(store)
    assert merged.content_id == alone.content_id and merged.verify() == []
    assert merge(tmp_path / "m", store) == []
    for site in SITES:
        np.testing.assert_array_equal(merged.read(site), whole(site))


def test_parts_of_different_extractions_are_not_merged(tmp_path: Path, store: Path) -> None:
    write(tmp_path / "other", dtype="float16")
    before = files_of(store)
    with pytest.raises(ProvenanceMismatch, match="not parts of one"):
        merge(store, tmp_path / "other")
    assert files_of(store) == before


def test_a_shard_with_two_contents_is_refused_unless_the_first_is_preferred(tmp_path: Path) -> None:
    one, other = part(tmp_path / "a", 0), tmp_path / "b"
    writer = StoreWriter.open(other, identity=identity(), environment={})
    changed = content(0).sites | {"embed": content(0).sites["embed"] + 1}
    writer.commit(0, type(content(0))(**{**vars(content(0)), "sites": changed}))
    writer.commit(1, content(1))
    before = files_of(one)
    with pytest.raises(StoreError, match="two contents"):
        merge(one, other)
    assert files_of(one) == before
    assert merge(one, other, prefer_target=True) == [1]
    assert all(files_of(one)[name] == data for name, data in before.items())


def test_a_damaged_part_is_not_copied(tmp_path: Path) -> None:
    source = part(tmp_path / "p", 0, 1)
    flip(shard_files(source)[1])
    with pytest.raises(CorruptShard, match="shard 1"):
        merge(tmp_path / "m", source)
    assert Store.open(tmp_path / "m", allow_partial=True).verify() == []


def test_repair_sets_aside_what_is_damaged_and_extraction_makes_the_same_store_again(store: Path) -> None:
    sound, before = Store.open(store).content_id, files_of(store)
    assert repair(store) == [] and files_of(store) == before
    flip(shard_files(store)[1])
    record = store / "shards" / "s000002.json"
    record.write_bytes(record.read_bytes()[:-20])
    assert repair(store) == ["s000001.json", "s000002.json", "seal.json"]
    with pytest.raises(IncompleteStore, match="1 shards"):
        Store.open(store)
    write(store)
    again = Store.open(store, verification="full")
    assert again.content_id == sound and again.verify() == []


def test_garbage_is_old_and_unreferenced_and_nothing_else(store: Path) -> None:
    shards, sound = store / "shards", shard_files(store)[0]
    old = [
        age(shutil.copy(sound, shards / f"s000000.{'0' * 16}.h5")),
        age(shutil.copy(shards / "s000000.json", shards / ".bad-1-s000000.json")),
        age(shutil.copy(shards / "s000000.json", shards / ".tmp-elsewhere-7-01234567")),
    ]
    keep = [
        shutil.copy(sound, shards / f"s000001.{'1' * 16}.h5"),  # too young
        age(shutil.copy(sound, shards / "notes.h5")),  # not a name of the format
    ]
    (shards / f"s000002.{'2' * 16}.h5").symlink_to(sound)
    for file in shard_files(store):
        if not file.is_symlink() and file not in [Path(k) for k in keep]:
            age(file)
    before = files_of(store)
    found = garbage(store)
    assert {item.path for item in found} == {Path(file) for file in old}
    assert files_of(store) == before
    assert collect(found) == sum(len(before[str(Path(file).relative_to(store))]) for file in old)
    assert set(before) - set(files_of(store)) == {str(Path(file).relative_to(store)) for file in old}
    assert Store.open(store, verification="full").verify() == []


def test_the_shard_of_a_damaged_record_is_no_garbage(store: Path) -> None:
    (store / "shards" / "s000001.json").write_bytes(b"{}\n")
    for file in shard_files(store):
        age(file)
    assert garbage(store) == []


def test_removal_deletes_a_store_and_leaves_what_is_not_its_own(tmp_path: Path, store: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_text("kept")
    (store / "notes.txt").write_text("mine")
    (store / "shards" / "s000009.json").symlink_to(outside)
    assert sorted(remove(store)) == ["notes.txt", "shards"]
    assert outside.read_text() == "kept" and set(files_of(store)) == {"notes.txt", "shards/s000009.json"}
    write(tmp_path / "t")
    assert remove(tmp_path / "t") == [] and not (tmp_path / "t").exists()


def test_moments_of_earlier_versions_are_garbage_and_go_with_the_store(store: Path) -> None:
    folder = store / "moments"
    folder.mkdir()
    names = ["resid.0.train.json", f"resid.0.train.{'0123456789abcdef'}.h5"]
    for name in (*names, "mine.txt"):
        (folder / name).write_text("{}")
    assert Store.open(store).verify() == []
    assert sorted(item.path.name for item in garbage(store)) == sorted(names)
    assert remove(store) == ["moments"]
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_removal_is_refused_while_somebody_writes(store: Path) -> None:
    temporary = store / "shards" / ".tmp-elsewhere-7-01234567"
    temporary.write_bytes(b"half")
    before = files_of(store)
    with pytest.raises(StoreBusy):
        remove(store)
    assert files_of(store) == before
    age(temporary, 16 * 60)
    assert remove(store) == []


@pytest.mark.parametrize("action", [repair, garbage, remove])
def test_what_is_no_store_is_left_alone(tmp_path: Path, action: Callable[[Path], object]) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "s000000.json").write_text("{}")
    with pytest.raises(NotAStore):
        action(tmp_path)
    assert set(files_of(tmp_path)) == {"shards/s000000.json"}


def read_back(place: Path) -> dict[str, np.ndarray]:
    if place.suffix == ".h5":
        with h5py.File(place) as file:
            return {s: file[f"sites/{s}"][:] for s in SITES} | {"word": file["rows/word"][:]}
    if place.suffix == ".safetensors":
        found = load_file(place)
        return {s: found[s] for s in SITES} | {"word": found["rows.word"]}
    if place.suffix == ".parquet":
        table = pq.read_table(place)
        return {s: np.stack(table[s].to_numpy()) for s in SITES} | {"word": table["word"].to_numpy()}
    return {s: np.load(place / f"{s}.npy") for s in SITES} | {"word": np.load(place / "rows.word.npy")}


@pytest.mark.parametrize("name", ["x.h5", "x.safetensors", "x.parquet", "x"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exports_hold_what_the_store_holds(tmp_path: Path, name: str, dtype: str) -> None:
    write(tmp_path / "s", dtype=dtype)
    store, found = Store.open(tmp_path / "s"), read_back(export(tmp_path / "s", tmp_path / name))
    np.testing.assert_array_equal(found["word"], store.rows.word)
    for site in SITES:
        assert found[site].dtype == np.float32
        np.testing.assert_array_equal(found[site], store.read(site))


def test_a_compressed_export_is_compressed_and_equal(tmp_path: Path, store: Path) -> None:
    small, plain = (export(store, tmp_path / f"{c}.h5", compress=c) for c in (True, False))
    for place, codec in ((small, "gzip"), (plain, None)):
        with h5py.File(place) as file:
            assert {file[f"sites/{site}"].compression for site in SITES} == {codec}
    for site in SITES:
        np.testing.assert_array_equal(read_back(small)[site], whole(site))


def test_an_export_is_refused_whole_or_not_begun(tmp_path: Path, store: Path) -> None:
    (tmp_path / "there.h5").write_text("mine")
    for name, options in (("x.csv", {}), ("there.h5", {}), ("x", {"compress": True})):
        with pytest.raises(BadParameter):
            export(store, tmp_path / name, **options)
    with pytest.raises(IncompleteStore):
        export(part(tmp_path / "p", 0), tmp_path / "y.h5")
    flip(shard_files(store)[0])
    with pytest.raises(CorruptShard):
        export(store, tmp_path / "z.h5")
    assert (tmp_path / "there.h5").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p", "s", "there.h5"]


def test_commands_say_what_they_did(tmp_path: Path, store: Path) -> None:
    run = CliRunner().invoke
    assert "sound" in run(app, ["store", "verify", str(store), "--repair"]).output
    assert "nothing was deleted" in run(app, ["store", "gc", str(store)]).output
    assert "1 shards copied" in run(app, ["store", "merge", str(tmp_path / "m"), str(part(tmp_path / "p", 0))]).output
    exported = run(app, ["store", "export", str(store), "--to", str(tmp_path / "e.safetensors")])
    assert exported.exit_code == 0 and (tmp_path / "e.safetensors").exists()
    declined = run(app, ["store", "rm", str(store)], input="n\n")
    assert declined.exit_code == 1 and store.exists()
    assert run(app, ["store", "rm", str(store), "--yes"]).exit_code == 0 and not store.exists()
    missing = run(app, ["store", "rm", str(store), "--yes"])
    assert missing.exit_code == 1 and missing.output.startswith("NotAStore")


def test_metadata_of_an_export_says_where_it_came_from(tmp_path: Path, store: Path) -> None:
    folder = export(store, tmp_path / "x")
    said = json.loads((folder / "metadata.json").read_text())
    assert said["content_id"] == Store.open(store).content_id
    assert json.loads(said["identity"])["model"]["source"] == "made-up"
