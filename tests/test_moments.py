"""Laws of moments: one order of additions, one set of bits; never of other examples, never of shards that changed."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from probing.cli.commands import app
from probing.errors import (
    BadParameter,
    CorruptShard,
    IncompleteStore,
    ProvenanceMismatch,
    StoreError,
    UnknownName,
    UnknownSite,
)
from probing.states.extraction import extract
from probing.states.extraction.gathering import gather_moments
from probing.states.store import (
    FileOps,
    Moments,
    Store,
    StoreWriter,
    collect,
    garbage,
    merge,
    remove,
    repair,
    store_info,
)
from probing.states.store.format import parse_signed, signed_json
from probing.states.store.moments import BLOCK_ROWS, Chosen, Sums
from probing.text.corpus import Corpus
from probing.training.pooling import with_rows
from tests import store_samples
from tests.conftest import REFERENCE
from tests.tiny_models import corpus_of, language_model

TEXTS = ["the thing is being", "a", "", "on the thing", "in the inning the thing", "x y", "one two three", "the the"]
SPLITS = ("train", "dev", "train", "train", "test", "train", "dev", "train")
CORPUS = Corpus(tuple(replace(e, split=s) for e, s in zip(corpus_of(*TEXTS).examples, SPLITS, strict=True)))
TRAIN = [0, 2, 3, 5, 7]
SITES = ("resid.0", "resid.1", "resid.2")
DAY = 24 * 3600


def run(path: Path, moments: str | None = None, **options: Any) -> Store:
    return extract(language_model("gpt2"), CORPUS, to=path, shard_bytes=700, moments=moments, progress=False, **options)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = run(tmp_path / "s", moments="train")
    assert made.shards_planned >= 4
    return made


def kept(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((path / "moments").glob("*.h5"))}


def age(*files: Path) -> None:
    for file in files:
        os.utime(file, (time.time() - DAY - 60,) * 2)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def of_shards(*states: np.ndarray[Any, Any]) -> Moments:
    """Moments of made-up shards of one example each."""
    sums = Sums(states[0].shape[1])
    for example, rows in enumerate(states):
        blocks = (rows[first : first + BLOCK_ROWS] for first in range(0, len(rows), BLOCK_ROWS))
        sums.add_shard(blocks, Chosen(np.arange(len(rows)), np.array([example]), np.zeros(0, np.int64)))
    return sums.moments("resid.0", "train")


def alone(moments: Moments, example: int) -> Moments:
    return replace(moments, examples=np.array([example]))


def test_gathered_during_after_resumed_by_workers_or_after_merging_the_bytes_are_the_same(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = kept(store.path)
    assert len(live) == len(SITES)
    after = run(tmp_path / "after")
    gather_moments(after, CORPUS)
    assert kept(after.path) == live
    for worker in (2, 0, 1):
        part = run(tmp_path / "workers", moments="train", num_workers=3, worker_index=worker)
        assert (part.shards_done == part.shards_planned) == (worker == 1)
    assert kept(tmp_path / "workers") == live
    for worker in (1, 0):
        run(tmp_path / f"part{worker}", num_workers=2, worker_index=worker)
        merge(tmp_path / "merged", tmp_path / f"part{worker}")
    gather_moments(Store.open(tmp_path / "merged"), CORPUS)
    assert kept(tmp_path / "merged") == live
    commit, calls = StoreWriter.commit, list[int]()

    def stopping(self: StoreWriter, shard: int, content: Any) -> None:
        calls.append(shard)
        if len(calls) == 3:
            raise KeyboardInterrupt
        commit(self, shard, content)

    monkeypatch.setattr(StoreWriter, "commit", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", moments="train")
    assert not kept(tmp_path / "resumed")
    run(tmp_path / "resumed", moments="train")
    assert kept(tmp_path / "resumed") == live


def test_an_extraction_that_writes_all_shards_itself_reads_no_states_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, blocks = list[str](), Store.blocks
    monkeypatch.setattr(Store, "blocks", lambda self, site, *a, **k: reads.append(site) or blocks(self, site, *a, **k))
    live = kept(run(tmp_path / "live", moments="all").path)
    assert not reads
    monkeypatch.setattr("probing.states.extraction.gathering.LIVE_BYTES", 0)  # as if the sums of all sites did not fit
    assert kept(run(tmp_path / "later", moments="all").path) == live and reads


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_moments_are_of_the_states_as_they_are_stored(tmp_path: Path, dtype: str) -> None:
    live, after = run(tmp_path / "live", moments="train", dtype=dtype), run(tmp_path / "after", dtype=dtype)
    gather_moments(after, CORPUS)
    assert kept(live.path) == kept(after.path)
    x = live.read("resid.2")[np.isin(live.rows.example, TRAIN)].astype(np.float64)
    np.testing.assert_allclose(live.moments("resid.2").cross, x.T @ x, rtol=1e-12, atol=1e-12)


def test_moments_of_shards_added_in_shard_order_are_those_of_the_whole_to_the_bit_and_in_another_order_are_not() -> (
    None
):
    rng = np.random.default_rng(0)
    shards = [rng.normal(size=(n, 24)).astype(np.float32) for n in (2500, 1, 700, 1024, 0, 3000)]
    whole = of_shards(*shards)
    parts = [alone(of_shards(rows), k) for k, rows in enumerate(shards)]
    merged = reduce(add, parts)
    for name in ("total", "cross"):
        assert getattr(merged, name).tobytes() == getattr(whole, name).tobytes()
    assert merged.count == whole.count == 7225 and merged.examples.tolist() == [0, 1, 2, 3, 4, 5]
    other = reduce(add, reversed(parts))
    assert other.cross.tobytes() != whole.cross.tobytes()
    np.testing.assert_allclose(other.cross, whole.cross, rtol=1e-9, atol=1e-9)


def test_moments_that_overlap_or_are_of_other_sites_are_not_added() -> None:
    one = of_shards(np.ones((2, 3), np.float32))
    with pytest.raises(BadParameter, match="example 0 in both"):
        _ = one + one
    with pytest.raises(BadParameter, match="one site"):
        _ = one + replace(alone(one, 1), site="resid.1")


def test_mean_and_covariance_are_numpys_over_the_rows_of_the_split(store: Store) -> None:
    mine = np.isin(store.rows.example, TRAIN)
    assert 0 < mine.sum() < store.n_rows
    for site in SITES:
        found, x = store.moments(site, "train"), store.read(site)[mine].astype(np.float64)
        assert (found.count, found.examples.tolist(), found.empty.tolist()) == (int(mine.sum()), TRAIN, [2])
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance(ddof=1), np.cov(x.T), atol=1e-12 * np.square(x).mean())
        np.testing.assert_array_equal(found.centred, found.centred.T)


def test_covariance_survives_a_mean_of_a_thousand_deviations_and_a_float32_one_does_not() -> None:
    rng = np.random.default_rng(1)
    x = (1000 + rng.normal(size=(20_000, 8)) @ rng.normal(size=(8, 8))).astype(np.float32)
    found = of_shards(*np.array_split(x, 7))
    exact = np.cov(x.astype(np.float64).T, ddof=0)
    np.testing.assert_allclose(found.covariance(), exact, rtol=0, atol=1e-8 * exact.max())
    mean = x.mean(0)
    assert np.abs(x.T @ x / len(x) - np.outer(mean, mean) - exact).max() > 1e-3 * exact.max()


def test_a_constant_feature_is_constant_and_a_barely_varying_one_is_not() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(5000, 4)).astype(np.float32)
    x[:, 1], x[:, 2] = 0.1, 0.0
    x[:, 3] = 100 + 1e-3 * x[:, 3]
    found = of_shards(x[:1000], x[1000:])
    assert found.constant.tolist() == [False, True, True, False]
    assert not found.centred[1:3].any() and not found.centred[:, 1:3].any()
    np.testing.assert_allclose(found.covariance()[3, 3], x[:, 3].astype(np.float64).var(), rtol=1e-4)


def test_moments_of_exactly_the_training_examples_are_given_and_all_others_refused(store: Store) -> None:
    found = store.moments("resid.1")
    rows = store.rows.example[np.isin(store.rows.example, TRAIN)]
    for given in (TRAIN, TRAIN[::-1], rows, [0, 3, 5, 7]):  # example 2 has no row: with or without it, it is the same
        assert found.require(given) is found
    assert found.require(rows, rows=len(rows)) is found
    for wrong, text in (([0, 3, 5], "1 of them not trained on"), ([*TRAIN, 1], "1 missing"), ([], "4 of them")):
        with pytest.raises(ProvenanceMismatch, match=text):
            found.require(wrong)
    with pytest.raises(ProvenanceMismatch, match="other rows"):
        found.require(rows, rows=len(rows) - 1)


def test_what_was_not_gathered_or_cannot_be_is_refused_with_the_next_step(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UnknownName, match="probing store moments"):
        store.moments("resid.1", "dev")
    with pytest.raises(UnknownSite, match=r"resid\.2"):
        store.moments("resid.22")
    with pytest.raises(BadParameter, match="cannot name a selection"):
        store.moments("resid.1", "../../x")
    with pytest.raises(BadParameter, match="did you mean 'train'"):
        gather_moments(store, CORPUS, selection="trian")
    with pytest.raises(ProvenanceMismatch, match="another corpus"):
        gather_moments(store, corpus_of(*TEXTS[:-1]))
    with pytest.raises(BadParameter, match="did you mean 'train'"):
        run(tmp_path / "none", moments="trian")
    assert not (tmp_path / "none").exists()
    part = run(tmp_path / "part", num_workers=2)
    with pytest.raises(IncompleteStore):
        gather_moments(part, CORPUS)


def test_a_subset_and_a_piece_store_have_moments_of_what_they_hold(tmp_path: Path) -> None:
    store = run(tmp_path / "s", moments="train", subset="0:4")
    assert store.moments("resid.1").examples.tolist() == [0, 2, 3]
    assert store.moments("resid.1").count == int(np.isin(store.rows.example, [0, 3]).sum())
    pieces = run(tmp_path / "p", moments="all", rows="piece")
    assert pieces.moments("resid.1", "all").count == pieces.n_rows
    with pytest.raises(BadParameter, match="of pieces"):
        with_rows(pieces, CORPUS, None, "word").moments("resid.1", "all")


def test_other_splits_replace_moments_of_the_same_name(store: Store) -> None:
    other = Corpus(tuple(replace(e, split="train" if k < 4 else "dev") for k, e in enumerate(CORPUS.examples)))
    gather_moments(store, other, sites="resid.1")
    assert store.moments("resid.1").examples.tolist() == [0, 1, 2, 3]
    assert store.moments("resid.2").examples.tolist() == TRAIN
    old = {file.name for file in (store.path / "moments").iterdir()}
    age(*(store.path / "moments").iterdir())
    collect(garbage(store.path))
    gone = old - {file.name for file in (store.path / "moments").iterdir()}
    assert len(gone) == 1 and gone.pop().startswith("resid.1.train.")
    assert Store.open(store.path).verify() == []


def change_a_shard(path: Path) -> None:
    """Compute shard 1 again, with other numbers, as another kind of device might."""
    (path / "shards" / "s000001.json").unlink()
    commit = StoreWriter.commit

    def changed(self: StoreWriter, shard: int, content: Any) -> None:
        sites = {site: states + np.float32(0.5) for site, states in content.sites.items()}
        commit(self, shard, replace(content, sites=sites))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "commit", changed)
        run(path)


def test_moments_of_shards_that_changed_are_refused_reported_and_collected(store: Store) -> None:
    change_a_shard(store.path)
    changed = Store.open(store.path)
    with pytest.raises(ProvenanceMismatch, match="stale"):
        changed.moments("resid.1")
    assert sum("stale" in problem for problem in changed.verify()) == len(SITES)
    assert not [item for item in garbage(store.path) if "moments" in str(item.path)]
    age(*(store.path / "moments").iterdir())
    stale = [item for item in garbage(store.path) if "moments" in str(item.path)]
    assert len(stale) == 2 * len(SITES)
    collect(stale)
    assert changed.verify() == [] and not store_info(store.path).get("moments")
    (fresh,) = gather_moments(changed, CORPUS, sites="resid.1")
    x = changed.read("resid.1")[np.isin(changed.rows.example, TRAIN)]
    np.testing.assert_allclose(fresh.mean, x.mean(0, dtype=np.float64), rtol=1e-12)


def test_repair_deletes_bad_moments_and_nothing_else(store: Store) -> None:
    folder = store.path / "moments"
    flip(next(folder.glob("resid.1.train.*.h5")), -9)
    (folder / "resid.2.train.json").write_bytes(b"{}")
    assert len(store.verify()) == 2
    assert repair(store.path) == ["moments/resid.1.train.json", "moments/resid.2.train.json"]
    assert Store.open(store.path).verify() == [] and (store.path / "seal.json").exists()
    assert store.moments("resid.0").count > 0


def test_every_changed_bit_of_the_sums_is_found_when_they_are_read_and_by_verify(store: Store) -> None:
    file = next((store.path / "moments").glob("resid.1.train.*.h5"))
    sound = file.read_bytes()
    record = store.moments_folder.record("resid.1", "train")
    for path, entry in record["datasets"].items():
        for place in {entry["offset"], entry["offset"] + entry["nbytes"] // 2, entry["offset"] + entry["nbytes"] - 1}:
            flip(file, place)
            with pytest.raises(CorruptShard, match=path):
                store.moments("resid.1")
            assert store.verify()
            file.write_bytes(sound)
    for damage in (sound[:-1], b""):
        file.write_bytes(damage)
        with pytest.raises(CorruptShard, match="bytes, not"):
            store.moments("resid.1")
    file.unlink()
    with pytest.raises(CorruptShard):
        store.moments("resid.1")
    json = store.path / "moments" / "resid.0.train.json"
    for place in range(0, json.stat().st_size, 97):
        flip(json, place)
        with pytest.raises(CorruptShard):
            store.moments("resid.0")
        flip(json, place)


def test_a_forged_record_and_an_unreadable_one_are_refused_by_type(store: Store) -> None:
    json = store.path / "moments" / "resid.0.train.json"
    record = parse_signed(json.read_bytes())
    for shards in ([[0, []]], [["0", "a"]], [[0]], {}, [[True, "a"]]):
        json.write_bytes(signed_json(record | {"shards": shards}))
        with pytest.raises(CorruptShard):
            store.moments("resid.0")
        assert any("which shards" in problem for problem in store.verify())
    json.unlink()
    json.mkdir()
    with pytest.raises(StoreError, match="cannot be written or read"):
        store.moments("resid.0")


def test_merging_brings_sound_moments_along_and_removing_removes_them(tmp_path: Path, store: Store) -> None:
    flip(next((store.path / "moments").glob("resid.1.train.*.h5")), -9)
    merge(tmp_path / "m", store.path)
    merged = Store.open(tmp_path / "m")
    assert [name for name, _ in merged.moments_folder.names()] == ["resid.0", "resid.2"]
    assert merged.verify() == [] and merged.moments("resid.2").count == store.moments("resid.2").count
    assert store_info(tmp_path / "m")["moments"] == ["resid.0 (train)", "resid.2 (train)"]
    (tmp_path / "m" / "moments" / "mine.txt").write_text("keep")
    assert remove(tmp_path / "m") == ["moments"]
    assert [file.name for file in (tmp_path / "m").rglob("*")] == ["moments", "mine.txt"]
    assert remove(store.path) == [] and not store.path.exists()


def test_moments_are_not_written_through_a_symbolic_link(tmp_path: Path) -> None:
    store, outside = run(tmp_path / "s"), tmp_path / "outside"
    outside.mkdir()
    (store.path / "moments").symlink_to(outside)
    with pytest.raises(StoreError, match="symbolic link"):
        gather_moments(store, CORPUS)
    assert not list(outside.iterdir())


class Stopped(BaseException):
    """The process is gone."""


class StopAt(FileOps):
    """Stops for ever at call `at`."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found
        self.count += 1
        if self.count > self.at:
            raise Stopped
        return found


def test_stopped_at_any_call_moments_are_the_old_ones_or_the_new_ones_never_wrong(tmp_path: Path) -> None:
    run(tmp_path / "s", moments="train")
    wider = replace(CORPUS, examples=tuple(replace(e, split="train") for e in CORPUS.examples))
    shutil.copytree(tmp_path / "s", tmp_path / "n")
    (new, *_) = gather_moments(Store.open(tmp_path / "n"), wider, sites="resid.1")
    at, seen = 0, set[int]()
    while True:
        shutil.copytree(tmp_path / "s", tmp_path / f"stop{at}")
        store = Store.open(tmp_path / f"stop{at}")
        try:
            store.moments_folder.write(new, {}, StopAt(at))
        except Stopped:
            found = store.moments("resid.1")
            assert found.examples.tolist() in (TRAIN, list(range(8)))
            seen.add(len(found.examples))
            gather_moments(store, wider, sites="resid.1")
            assert store.moments("resid.1").cross.tobytes() == new.cross.tobytes()
            at += 1
            continue
        break
    assert at > 10 and seen == {5, 8}


def made_up(path: Path, n_shards: int, rows: int = 4000, width: int = 32) -> Store:
    identity = store_samples.identity(n_shards=n_shards)
    identity["extraction"]["sites"] = ["embed"]
    identity["corpus"]["fingerprint"] = Corpus(corpus_of(*["a"] * 4 * n_shards).examples).fingerprint
    writer = StoreWriter.open(path, identity=identity, environment={})
    for shard in range(n_shards):
        base, example = store_samples.content(shard), np.repeat(np.arange(4 * shard, 4 * shard + 4), rows // 4)
        states = np.random.default_rng(shard).normal(size=(rows, width)).astype(np.float32)
        offset = np.arange(5) * (rows // 4)
        columns = dict.fromkeys(base.rows, np.zeros(rows, np.int64)) | {"example": example}
        content = replace(base, rows=columns, examples={**base.examples, "offset": offset}, sites={"embed": states},
                          skipped=(), missing_words=())  # fmt: skip
        writer.commit(shard, content)
    writer.seal()
    return Store.open(path)


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path) -> None:
    peaks = []
    for n_shards in (2, 12):
        store, corpus = made_up(tmp_path / f"s{n_shards}", n_shards), corpus_of(*["a"] * 4 * n_shards)
        tracemalloc.start()
        (found,) = gather_moments(store, corpus, selection="all")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.count == n_shards * 4000
    assert peaks[1] <= 1.1 * peaks[0] < 12 * 4000 * 32 * 4


def test_the_command_line_gathers_during_and_after_with_the_same_bytes(tmp_path: Path, corpus_flags: list[str]) -> None:
    flags = ["--model", str(REFERENCE / "model"), *corpus_flags, "--quiet", "--sites", "resid.1,resid.2"]
    for name, more in (("a", ["--moments", "train"]), ("b", [])):
        result = CliRunner().invoke(app, ["extract", *flags, "--to", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["store", "moments", str(tmp_path / "b"), *corpus_flags, "--selection", "train"])
    assert result.exit_code == 0 and "of 150 examples (train), width 64" in result.output
    assert kept(tmp_path / "a") == kept(tmp_path / "b") and len(kept(tmp_path / "a")) == 2
    result = CliRunner().invoke(app, ["store", "info", str(tmp_path / "a")])
    assert "resid.1 (train), resid.2 (train)" in result.output
    result = CliRunner().invoke(app, ["store", "verify", str(tmp_path / "a")])
    assert result.exit_code == 0
    result = CliRunner().invoke(app, ["store", "moments", str(tmp_path / "b"), *corpus_flags, "--selection", "nothing"])
    assert result.exit_code == 1 and "BadParameter" in result.stderr
