"""Latents in a store: they are what `encode` gives, under the store's laws, and survive a stop at any shard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probing as pb
from probing.dictionaries import encoding
from probing.dictionaries.encoding import encode_states
from probing.errors import (
    BadParameter,
    ConfigError,
    CorruptShard,
    IncompleteStore,
    NonFiniteStates,
    NotRepresentable,
    ProbingError,
    ProbingWarning,
    ProvenanceMismatch,
    UnknownSite,
)
from probing.states.store import StoreWriter, narrow
from probing.states.store.export import export
from probing.states.store.format import parse_signed, signed_json
from probing.states.store.latents import INDICES, INDPTR, VALUES
from tests.samples.golden_samples import ROWS_OF, STORES, content, identity

WIDTH, ROWS, M = 64, sum(ROWS_OF), 300


def states_store(path: Path, *, dtype: str = "float32", scale: float = 1.0, seed: int = 0) -> pb.Store:
    """A store of two shards with ordinary states at resid.2, and the rows of the golden ones."""
    golden = replace(STORES[0], dtype=dtype, sites=("resid.2",))
    writer, rng = StoreWriter.open(path, identity=identity(golden), environment={}), np.random.default_rng(seed)
    for shard in golden.shards:
        given = content(shard, golden)
        drawn = scale * rng.standard_normal((len(given.rows["example"]), WIDTH)).astype("f4")
        writer.commit(shard, replace(given, sites={"resid.2": narrow(drawn, dtype, "resid.2")}))
    writer.seal()
    return pb.Store.open(path)


def dictionary(seed: int = 0, **more: Any) -> pb.Dictionary:
    rng = np.random.default_rng(seed)
    own: dict[str, Any] = {"architecture": "topk", "k": 9, "site": "resid.2", "encoder_bias": np.zeros(M)}
    own |= {"encoder": rng.standard_normal((WIDTH, M)), "decoder": rng.standard_normal((M, WIDTH))}
    return pb.Dictionary(**own | {"decoder_bias": np.zeros(WIDTH)} | more)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_store_of_latents_holds_what_encode_gives(stored: str, dtype: str, tmp_path: Path) -> None:
    store, made = states_store(tmp_path / "states", dtype=stored), dictionary()
    latents = encode_states(made, store, tmp_path / "latents", dtype=dtype)
    truth = made.encode(store.read("resid.2"))
    read = latents.latents()
    assert (read.indptr == truth.indptr).all() and (read.indices == truth.indices).all()
    tolerance = {"float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    np.testing.assert_allclose(read.data, truth.data, rtol=tolerance)
    assert latents.verify() == [] and latents.role == "latents" and latents.width("resid.2") == M
    assert latents.rows.word.tolist() == store.rows.word.tolist() and latents.skipped == store.skipped
    assert latents.missing_words == store.missing_words
    about = latents.identity["extraction"]
    assert about["dictionary"]["content_id"] == made.content_id and about["states"]["content_id"] == store.content_id


def test_latents_stay_within_a_tenth_of_their_values_and_columns(tmp_path: Path) -> None:
    made = dictionary(k=64, encoder=np.random.default_rng(0).standard_normal((WIDTH, M)))
    latents = encode_states(made, states_store(tmp_path / "states"), tmp_path / "latents")
    sizes = {path: sum(latents.dataset(shard, path).nbytes for shard in (0, 1)) for path in (INDPTR, INDICES, VALUES)}
    assert sizes[INDICES] == sizes[VALUES] == 2 * 64 * ROWS
    assert sum(sizes.values()) <= 1.1 * (sizes[INDICES] + sizes[VALUES])


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, made, to = states_store(tmp_path / "states"), dictionary(), tmp_path / "latents"
    whole = encode_states(made, store, tmp_path / "whole")
    encoded, calls = encoding.Encoder.encode, []

    def stop_at_second(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encoded(self, *arguments)

    monkeypatch.setattr(encoding.Encoder, "encode", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        encode_states(made, store, to)
    with pytest.raises(IncompleteStore):
        pb.Store.open(to)
    again = encode_states(made, store, to)
    assert len(calls) == 3 and again.content_id == whole.content_id
    assert encode_states(made, store, to).content_id == whole.content_id and len(calls) == 3
    with pytest.raises(ProvenanceMismatch, match="dictionary"):
        encode_states(dictionary(seed=1), store, to)


def test_states_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    store, to = states_store(tmp_path / "states"), tmp_path / "latents"
    cases: list[tuple[type[ProbingError], pb.Dictionary, dict[str, Any]]] = [
        (ConfigError, dictionary(site=None), {}),
        (UnknownSite, dictionary(site="resid.3"), {}),
        (UnknownSite, dictionary(), {"site": "resid.9"}),
        (ProvenanceMismatch, dictionary(model="EleutherAI/pythia-70m"), {}),
        (ProvenanceMismatch, dictionary(site="resid.3"), {"site": "resid.2"}),
        (
            BadParameter,
            dictionary(
                encoder=np.zeros((WIDTH - 1, M)), decoder=np.zeros((M, WIDTH - 1)), decoder_bias=np.zeros(WIDTH - 1)
            ),
            {},
        ),
        (BadParameter, dictionary(), {"dtype": "int8"}),
    ]
    for error, made, options in cases:
        with pytest.raises(error):
            encode_states(made, store, to, **options)
        assert not to.exists()
    accepted = encode_states(dictionary(model="pythia", site="resid.3"), store, to, site="resid.2", any_model=True)
    with pytest.raises(BadParameter, match="latents already"):
        encode_states(
            dictionary(encoder=np.zeros((M, M)), decoder=np.zeros((M, M)), decoder_bias=np.zeros(M)),
            accepted,
            tmp_path / "more",
        )
    with pytest.raises(BadParameter, match="no latents"):
        store.latents()


def test_latents_too_large_for_their_type_are_refused(tmp_path: Path) -> None:
    store = states_store(tmp_path / "states", scale=30_000.0)
    with pytest.raises(NotRepresentable, match="latents"):
        encode_states(dictionary(), store, tmp_path / "latents")
    assert encode_states(dictionary(), store, tmp_path / "other", dtype="bfloat16").n_rows == ROWS
    with pytest.raises(NonFiniteStates), np.errstate(over="ignore"):
        encode_states(dictionary(encoder=np.full((WIDTH, M), 3e38)), store, tmp_path / "third", dtype="float32")


@pytest.mark.parametrize("kind", ["npy", "safetensors", "h5", "parquet"])
def test_latents_are_exported_as_sparse_rows(kind: str, tmp_path: Path) -> None:
    latents = encode_states(dictionary(), states_store(tmp_path / "states"), tmp_path / "latents", dtype="float32")
    file = export(tmp_path / "latents", tmp_path / f"out{'' if kind == 'npy' else '.' + kind}")
    truth = latents.latents()
    if kind == "npy":
        given = {name: np.load(file / f"latents.{name}.npy") for name in ("indptr", "indices", "values")}
    elif kind == "safetensors":
        from safetensors.numpy import load_file

        given = {name: load_file(file)[f"latents.{name}"] for name in ("indptr", "indices", "values")}
    elif kind == "h5":
        import h5py

        with h5py.File(file) as opened:
            given = {name: opened[f"latents/{name}"][:] for name in ("indptr", "indices", "values")}
    else:
        import pandas as pd

        frame = pd.read_parquet(file)
        assert np.concatenate(frame["latent_values"].to_list()).tolist() == truth.data.tolist()
        assert np.concatenate(frame["latent_indices"].to_list()).tolist() == truth.indices.tolist()
        return
    assert (given["indptr"] == truth.indptr).all() and (given["values"] == truth.data).all()
    assert (given["indices"] == truth.indices).all()


def test_200_spoiled_stores_give_typed_errors_or_the_same_latents(tmp_path: Path) -> None:
    latents = encode_states(dictionary(), states_store(tmp_path / "states"), tmp_path / "latents")
    truth, rng, refused = latents.latents(), np.random.default_rng(0), 0
    files = [file for file in sorted((tmp_path / "latents").rglob("*")) if file.is_file()]
    for trial in range(200):
        file = files[trial % len(files)]
        before = file.read_bytes()
        spoiled = bytearray(before)
        for _ in range(int(rng.integers(1, 5))):
            spoiled[int(rng.integers(len(before)))] = int(rng.integers(256))
        file.write_bytes(bytes(spoiled[: rng.integers(len(before))] if trial % 4 == 0 else spoiled))
        try:
            read = pb.Store.open(tmp_path / "latents").latents()
            assert (read != truth).nnz == 0 and read.shape == truth.shape
        except ProbingError:
            refused += 1
        file.write_bytes(before)
    assert refused > 80


@pytest.mark.parametrize("spoil", ["beyond", "unsorted", "falling", "short"])
def test_rows_that_are_no_sparse_rows_are_refused_although_their_hashes_are_right(spoil: str, tmp_path: Path) -> None:
    import hashlib

    import xxhash

    encode_states(dictionary(), states_store(tmp_path / "states"), tmp_path / "latents")
    folder = tmp_path / "latents" / "shards"
    record = parse_signed((folder / "s000000.json").read_bytes())
    data = bytearray((folder / record["file"]).read_bytes())
    path, dtype = (INDICES, "<u2") if spoil in ("beyond", "unsorted") else (INDPTR, "<u8")
    entry = record["datasets"][path]
    view = np.frombuffer(data, dtype, np.prod(entry["shape"], dtype=int), entry["offset"])
    if spoil == "beyond":
        view[8] = M
    elif spoil == "unsorted":
        view[:2] = view[1::-1].copy()
    elif spoil == "falling":
        view[2] = view[1] - 1
    else:
        view[-1] -= 1
    entry["xxh3_128"] = xxhash.xxh3_128_hexdigest(view.data.cast("B"))
    record["sha256"] = hashlib.sha256(data).hexdigest()
    record["file"] = f"s000000.{record['sha256'][:16]}.h5"
    (folder / record["file"]).write_bytes(data)
    (folder / "s000000.json").write_bytes(signed_json(record))
    with pytest.raises(CorruptShard):
        pb.Store.open(tmp_path / "latents").latents()
    assert json.loads((folder / "s000000.json").read_bytes())["n_rows"] == sum(ROWS_OF[:3])


def scaled_latents(*sizes: float, repeat: int = 1) -> pb.Dictionary:
    """Latents that read a coordinate each, times a size; the last one `repeat` times."""
    columns = np.repeat(np.arange(len(sizes)), [1] * (len(sizes) - 1) + [repeat])
    encoder = np.zeros((WIDTH, len(columns)))
    encoder[columns, np.arange(len(columns))] = np.asarray(sizes)[columns]
    own: dict[str, Any] = {"encoder": encoder, "encoder_bias": np.zeros(len(columns)), "decoder": encoder.T}
    return pb.Dictionary(architecture="standard", site="resid.2", decoder_bias=np.zeros(WIDTH), **own)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1e-42, 1e-9, 1e-6, 1.0])
def test_no_latent_is_stored_as_zero(dtype: str, size: float, tmp_path: Path) -> None:
    """Whatever its size, a latent is stored, or refused, and nothing is left in the folder that bars another type."""
    store, made, to = states_store(tmp_path / "states"), scaled_latents(size, 1.0), tmp_path / "latents"
    truth = made.encode(store.read("resid.2"))
    try:
        read = encode_states(made, store, to, dtype=dtype).latents()
    except NotRepresentable:
        assert size < 1e-8 and dtype != "float32" and not to.exists()
        read = encode_states(made, store, to, dtype="float32").latents()
    assert (read.data > 0).all() and (read.indices == truth.indices).all()


def test_a_few_latents_too_small_for_their_type_are_left_out_and_counted(tmp_path: Path) -> None:
    store, made = states_store(tmp_path / "states"), scaled_latents(1e-9, 1.0, repeat=3000)
    truth = made.encode(store.read("resid.2"))
    small = int((truth.data < 1e-8).sum())
    with pytest.warns(ProbingWarning, match=rf"^{small} of {truth.nnz:,} active latents"):
        read = encode_states(made, store, tmp_path / "latents").latents()
    assert read.nnz == truth.nnz - small and (read.data > 0).all() and read.shape == truth.shape


@pytest.mark.parametrize("earlier", [False, True])
def test_latents_that_do_not_fit_leave_nothing_half_written(
    earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever shard; what an earlier run wrote stays, and the error says that the folder is to be removed."""
    store, to, narrowed, calls = states_store(tmp_path / "states"), tmp_path / "latents", encoding.narrow_latents, []

    def fails_at_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt if earlier else NotRepresentable("latents do not fit", next_step="store as float32")
        if earlier and len(calls) == 3:
            raise NotRepresentable("latents do not fit", next_step="store as float32")
        return narrowed(*arguments)

    monkeypatch.setattr(encoding, "narrow_latents", fails_at_second)
    if earlier:
        with pytest.raises(KeyboardInterrupt):
            encode_states(dictionary(), store, to)
        with pytest.raises(IncompleteStore, match="probing dictionary encode"):
            pb.Store.open(to)
    with pytest.raises(NotRepresentable) as caught:
        encode_states(dictionary(), store, to)
    assert to.exists() == earlier and (f"remove {to} first" in str(caught.value)) == earlier
    if not earlier:
        assert encode_states(dictionary(), store, to, dtype="float32").n_rows == ROWS
