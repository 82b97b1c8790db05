"""What a writer writes its reader takes: records do not grow with words, and what is too large is refused before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from probing.errors import BadParameter, CorruptShard
from probing.states.extraction import extract
from probing.states.extraction import shard_reading as reading_of_shards
from probing.states.store import Store, StoreWriter, merge, store_info
from probing.states.store import format as store_format
from probing.states.store.commit_record import LISTED, MISSING
from tests.samples.store_samples import content, identity
from tests.samples.tiny_models import corpus_of, language_model

SMALL = 64 << 10  # bytes of JSON that a reader takes, in place of 64 MiB


def cut_text(folder: Path, n_words: int) -> Store:
    """A store of one text of which all words but a few are beyond the longest input."""
    return extract(language_model("gpt2"), corpus_of("ab " * n_words), to=folder, progress=False, max_length=16)


def record_of(store: Store) -> Path:
    return store.path / "shards" / "s000000.json"


def test_a_text_of_many_words_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_format, "MAX_JSON_BYTES", SMALL)
    store = cut_text(tmp_path / "long", 20_000)
    assert store.verify() == []
    lost = store.missing_words
    assert len(lost) + store.n_rows == 20_000
    assert lost == [(0, word, "truncated") for word in range(store.n_rows, 20_000)]
    assert store_info(store.path)["missing_words"] == {"truncated": len(lost)}
    with h5py.File(next((store.path / "shards").glob("*.h5"))) as file:
        assert file[MISSING].shape == (len(lost), 3)


def test_a_record_has_one_size_however_many_words_are_lost(tmp_path: Path) -> None:
    sizes = [record_of(cut_text(tmp_path / str(n), n)).stat().st_size for n in (2 * LISTED, 20 * LISTED)]
    assert abs(sizes[1] - sizes[0]) < 50


def test_few_words_stand_in_the_record_as_ever(tmp_path: Path) -> None:
    store = cut_text(tmp_path / "short", 100)
    assert len(store.missing_words) == 100 - store.n_rows
    with h5py.File(next((store.path / "shards").glob("*.h5"))) as file:
        assert "missing" not in file
    assert b'"missing_words":[[0,' in record_of(store).read_bytes()
    assert b"missing_counts" not in record_of(store).read_bytes()


def test_words_lost_are_bytes_like_others(tmp_path: Path) -> None:
    store = cut_text(tmp_path / "s", 5000)
    entry = store._records[0]["datasets"][MISSING]
    file = next((store.path / "shards").glob("*.h5"))
    data = bytearray(file.read_bytes())
    data[entry["offset"] + 8] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptShard, match="missing/words"):
        _ = Store.open(store.path).missing_words
    assert Store.open(store.path).verify()


def test_they_go_along_when_a_store_is_merged(tmp_path: Path) -> None:
    store = cut_text(tmp_path / "s", 5000)
    merge(tmp_path / "t", store.path)
    assert Store.open(tmp_path / "t").missing_words == store.missing_words


def test_an_identity_that_no_reader_takes_is_refused_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_format, "MAX_JSON_BYTES", 500)
    with pytest.raises(BadParameter, match="identity"):
        StoreWriter.open(tmp_path / "s", identity=identity(), environment={})
    assert not (tmp_path / "s").exists()


def test_a_record_that_no_reader_takes_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = StoreWriter.open(tmp_path / "s", identity=identity(), environment={})
    monkeypatch.setattr(store_format, "MAX_JSON_BYTES", 1000)
    with pytest.raises(BadParameter, match="more than a store's JSON may have"):
        writer.commit(0, content(0))
    assert list((tmp_path / "s" / "shards").iterdir()) == []


def test_a_seal_of_very_many_records_counts_them_by_their_content_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = StoreWriter.open(tmp_path / "s", identity=identity(), environment={})
    for shard in range(writer.n_shards):
        writer.commit(shard, content(shard))
    monkeypatch.setattr(store_format, "MAX_JSON_BYTES", 6000)
    writer.seal()
    assert b'"records"' not in (tmp_path / "s" / "seal.json").read_bytes()
    assert Store.open(tmp_path / "s").verify() == []


def test_more_than_a_shard_may_hold_is_refused_before_the_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("the model ran")

    model = language_model("gpt2")
    monkeypatch.setattr(reading_of_shards, "MAX_SHARD_BYTES", 1 << 16)
    monkeypatch.setattr(reading_of_shards, "_read_states", run)
    with pytest.raises(BadParameter, match="of one example"):
        extract(
            model, corpus_of("a", "ab " * 2000), to=tmp_path / "s", progress=False, max_length=16, long_inputs="window"
        )


def test_positions_that_no_text_has_are_kept_out_of_the_record_too(tmp_path: Path) -> None:
    writer = StoreWriter.open(tmp_path / "s", identity=identity(), environment={})
    lost = [(example, word, "nothing_selected") for example in range(4) for word in range(LISTED)]
    writer.commit(0, replace(content(0), missing_words=lost))
    store = Store.open(tmp_path / "s", allow_partial=True)
    assert store.missing_words == lost
    assert np.asarray(store.dataset(0, MISSING)).dtype == np.uint32
