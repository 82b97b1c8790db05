"""Laws of replay stores: what the model was given, its clean outputs, and no edit before clean states give these."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from probing.cli.commands import app
from probing.errors import (
    BadParameter,
    CorruptShard,
    EditFailed,
    ProvenanceMismatch,
    ReplayUnavailable,
    UnknownName,
    UnknownSite,
)
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from probing.states.extraction.replaying import Replay, ReplayBatch
from probing.states.store import Store, StoreWriter, merge, store_info
from probing.states.store.export import export
from probing.states.store.format import StoreLayout
from probing.text.corpus import Corpus
from probing.training import train
from tests.conftest import REFERENCE
from tests.models.test_suffix_replay import read
from tests.samples import store_samples
from tests.samples.tiny_models import build, byte_tokenizer, corpus_of, wordpiece_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["the thing is being", "a", "", "on the thing", "in the inning", "x y", "one two three", "the thing is being"]
SPLITS = ("train", "test", "test", "test", "train", "test", "train", "test")
CORPUS = Corpus(tuple(replace(e, split=s) for e, s in zip(corpus_of(*TEXTS).examples, SPLITS, strict=True)))
TEST = [1, 2, 3, 5, 7]


@cache
def masked(side: str = "right") -> LanguageModel:
    """A masked language model whose tokenizer knows its mask piece."""
    tokenizer = wordpiece_tokenizer()
    tokenizer.mask_token = "[UNK]"
    return LanguageModel.from_modules(build("bert"), tokenizer, name="bert", padding_side=side)


def run(path: Path, model: LanguageModel, corpus: Corpus = CORPUS, **options: Any) -> Store:
    given: dict[str, Any] = {"role": "replay", "tokens_per_batch": 40, "shard_bytes": 9000, "progress": False}
    return extract(model, corpus, to=path, **(given | options))


def all_of(store: Store, name: str) -> np.ndarray[Any, Any]:
    return np.concatenate([store.dataset(shard, name) for shard in store.shards])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "roberta", "reference"])
def test_replay_from_every_site_gives_the_clean_outputs(tmp_path: Path, family: str, side: str) -> None:
    model = read(family, side)
    corpus = Corpus.read(str(REFERENCE / "test.jsonl")) if family == "reference" else CORPUS
    store = run(
        tmp_path / "s",
        model,
        corpus,
        subset="0:8",
        outputs="all",
        shard_bytes=60_000 if family == "reference" else 9000,
    )
    assert store.verify() == [] and store.shards_planned > 1
    replay, pieces, padded = Replay.open(tmp_path / "s", model), 0, 0
    for batch in replay.batches():
        pieces, padded = pieces + len(batch.places), padded + int((batch.rows < 0).sum())
        for site in replay.sites:
            torch.testing.assert_close(replay.run(batch, site), batch.logits, atol=0, rtol=0)
    assert pieces == store.n_rows and padded and len(replay.sites) == len(model._trunk.blocks) + 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_mask_pieces_of_a_masked_model_are_replayed(tmp_path: Path, side: str) -> None:
    model, corpus = masked(side), corpus_of("the [UNK] cat", "the cat", "[UNK] is the [UNK]")
    store = run(tmp_path / "s", model, corpus, tokens_per_batch=100)
    assert store.identity["extraction"]["outputs"] == "mask"
    ids = np.asarray(store.rows.input_id)
    assert sorted(all_of(store, "/outputs/row")) == np.flatnonzero(ids == model.tokenizer.mask_token_id).tolist()
    replay = Replay.open(store, model)
    for batch in replay.batches():
        for site in replay.sites:
            torch.testing.assert_close(replay.run(batch, site), batch.logits, atol=0, rtol=0)


def test_a_replay_store_holds_exactly_what_the_model_was_given_and_gave(tmp_path: Path) -> None:
    for side in ("right", "left"):
        model = read("llama", side)
        store = run(tmp_path / side, model)
        rows = store.rows
        assert rows.input_id is not None and rows.position_id is not None and rows.mask is not None
        assert (store.identity["extraction"]["rows"], store.skipped) == ("sequence", [(2, "no_pieces")])
        for batch in Replay.open(store, model).batches():
            encoded = model.encode([TEXTS[e] for e in batch.examples])
            inputs, real = model.padded(encoded), batch.rows >= 0
            assert torch.equal(inputs.ids * inputs.mask, batch.inputs.ids)
            assert torch.equal(inputs.mask, batch.inputs.mask)
            if inputs.position_ids is None:
                assert batch.inputs.position_ids is None and (rows.position_id[batch.rows[real]] == -1).all()
            else:
                assert torch.equal(inputs.position_ids, batch.inputs.position_ids)
            _, logits = model.suffix.read(inputs, [])
            assert logits is not None
            last = [int(np.flatnonzero(real[k])[-1]) for k in range(len(real))]
            assert batch.places.tolist() == [[k, t] for k, t in enumerate(last)]
            expected = logits[range(len(last)), last]
            torch.testing.assert_close(batch.logits, expected, atol=0, rtol=0)
            torch.testing.assert_close(batch.logsumexp, expected.logsumexp(-1), atol=0, rtol=0)
    assert (rows.position_id >= 0).any() and (rows.position_id == -1).any()  # given only where padding is on the left


def test_special_pieces_are_rows_of_no_word_and_no_characters(tmp_path: Path) -> None:
    store = run(tmp_path / "s", masked(), corpus_of("the cat", "a"), outputs="last")
    first = store.rows.example == 0
    assert store.rows.word[first].tolist() == [-1, 0, 1, -1]
    assert store.rows.char_start[first].tolist() == [0, 0, 4, 0] and store.rows.char_end[first].tolist() == [0, 3, 7, 0]
    assert all_of(store, "/outputs/row")[0] == 2  # the last piece that is not special


@pytest.mark.parametrize("columns", ["11,7,260,7", [260, 7, 11], "file"])
def test_chosen_columns_are_those_of_all_and_the_sum_is_over_the_whole_vocabulary(tmp_path: Path, columns: Any) -> None:
    model, file = read("gpt2"), tmp_path / "ids.txt"
    file.write_text("11\n7\n\n260\n")
    whole = run(tmp_path / "whole", model, shard_bytes=1 << 20)
    given = str(file) if columns == "file" else columns
    some = run(tmp_path / "some", model, columns=given, shard_bytes=1 << 20)
    assert all_of(some, "/outputs/column")[:3].tolist() == [7, 11, 260]
    np.testing.assert_array_equal(all_of(some, "/outputs/logits"), all_of(whole, "/outputs/logits")[:, [7, 11, 260]])
    np.testing.assert_array_equal(all_of(some, "/outputs/logsumexp"), all_of(whole, "/outputs/logsumexp"))
    replay = Replay.open(some, model)
    assert replay.columns is not None and replay.columns.tolist() == [7, 11, 260]
    for batch in replay.batches():
        torch.testing.assert_close(replay.run(batch, "resid.1"), batch.logits, atol=0, rtol=0)


def test_an_edit_changes_the_outputs_and_gradients_reach_the_states(tmp_path: Path) -> None:
    model = read("gpt2")
    replay = Replay.open(run(tmp_path / "s", model), model)
    batch = next(replay.batches())
    states = replay.states(batch, "resid.1").requires_grad_()
    outputs = replay.run(batch, "resid.1", states)
    (found,) = torch.autograd.grad(outputs[:, 5].sum(), states)
    real = torch.from_numpy(batch.rows >= 0)
    assert found[real].abs().sum() > 0 and not found[~real].any()  # nothing depends on padding
    assert not torch.allclose(replay.run(batch, "resid.1", 2 * states.detach()), batch.logits, atol=1e-3)


def test_no_edit_is_run_before_clean_states_have_given_the_clean_outputs(tmp_path: Path) -> None:
    model = read("gpt2")
    store = run(tmp_path / "s", model)
    last = model._trunk.blocks[-1].ln_2.weight
    replay = Replay.open(store, model)
    batch = next(replay.batches())
    kept = last.detach().clone()
    try:
        with torch.no_grad():
            last.mul_(1.01)  # as if folded, or of another revision
        with pytest.raises(EditFailed, match=r"clean states at resid\.1 .*\n.*1e-05"):
            replay.run(batch, "resid.1", replay.states(batch, "resid.1"))
        with torch.no_grad():
            last.copy_(kept * (1 + 1e-8))
        replay.run(batch, "resid.1")
    finally:
        with torch.no_grad():
            last.copy_(kept)


def test_another_model_store_or_site_is_refused(tmp_path: Path) -> None:
    model = read("gpt2")
    store = run(tmp_path / "s", model, sites="resid.1,mlp_out.0")
    with pytest.raises(ProvenanceMismatch, match=r"model\.class: .*GPT2.*, here .*Llama"):
        Replay.open(store, read("llama"))
    with pytest.raises(ProvenanceMismatch, match=r'model\.dtype: "float32", here "float64"'):
        Replay.open(store, read("gpt2", "right", torch.float64))
    with pytest.raises(ProvenanceMismatch, match="padding_side"):
        Replay.open(store, read("gpt2", "left"))
    plain = extract(model, CORPUS, to=tmp_path / "plain", progress=False)
    with pytest.raises(ReplayUnavailable, match="--role replay"):
        Replay.open(plain, model)
    replay = Replay.open(store, model)
    assert replay.sites == ("resid.1",)
    batch = next(replay.batches())
    with pytest.raises(UnknownSite):
        replay.run(batch, "resid.0")
    with pytest.raises(ReplayUnavailable, match=r"resid\.l"):
        replay.run(batch, "mlp_out.0")
    with pytest.raises(UnknownName, match="/outputs/logits"):
        store.dataset(0, "/outputs/logit")


def test_a_model_without_a_head_is_checked_by_its_states(tmp_path: Path) -> None:
    model = LanguageModel.from_modules(build("gpt2").transformer, byte_tokenizer(), name="bare")
    store = run(tmp_path / "s", model)
    assert store.output_names == () and store.identity["extraction"]["outputs"] == "none"
    replay = Replay.open(store, model)
    batch = next(replay.batches())
    with pytest.raises(ReplayUnavailable, match="no outputs were kept"):
        replay.run(batch, "resid.0")
    states, real = replay.states(batch, "resid.0"), torch.from_numpy(batch.rows >= 0)
    found = replay.run_states(batch, "resid.0", states, "resid.2")
    torch.testing.assert_close(found[real], replay.states(batch, "resid.2")[real], atol=0, rtol=0)
    with pytest.raises(ReplayUnavailable, match="nothing is stored"):
        replay.run_states(batch, "resid.2", states, "resid.2")
    with torch.no_grad():
        model._trunk.blocks[1].ln_1.weight.mul_(1.01)
    other = Replay(store, model)
    with pytest.raises(EditFailed, match=r"states at resid\.2"):
        other.run_states(batch, "resid.0", states, "resid.2")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_stored_as_computed_and_replayed(tmp_path: Path, dtype: torch.dtype) -> None:
    model = read("llama", "right", dtype)
    store = run(tmp_path / "s", model)
    assert store.identity["extraction"]["dtype"] == model.dtype
    for batch in Replay.open(store, model).batches():
        for site in store.sites:
            torch.testing.assert_close(Replay.open(store, model).run(batch, site), batch.logits, atol=0, rtol=0)


def test_a_store_that_would_round_the_states_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="as they were computed"):
        run(tmp_path / "s", read("gpt2"), dtype="float16")
    identity = run(tmp_path / "t", read("gpt2")).identity
    identity["extraction"]["dtype"] = "bfloat16"
    with pytest.raises(BadParameter, match="as they were computed"):
        StoreLayout.of(identity)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"outputs": "first"}, "last, mask, all, none"),
        ({"outputs": "mask"}, "no mask piece"),
        ({"columns": "3,261"}, "0 to 260"),
        ({"columns": "none.txt"}, "neither numbers nor a file"),
        ({"columns": []}, "0 to 260"),
        ({"columns": "3", "outputs": "none"}, "no outputs to choose"),
        ({"role": "states", "outputs": "last"}, "role replay"),
        ({"role": "replays"}, "did you mean 'replay'"),
        ({"subset": "tset"}, "did you mean 'test'"),
        ({"subset": "3:9"}, "8 examples"),
        ({"subset": [8]}, "0 to 7"),
        ({"subset": "1,x2"}, "not a subset"),
        ({"subset": "2:2"}, "nothing"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path: Path, options: Any, text: str) -> None:
    with pytest.raises(BadParameter, match=text):
        run(tmp_path / "s", read("gpt2"), **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("subset", ["test", TEST[::-1], "1:4,5,7"])
@pytest.mark.parametrize("role", ["states", "replay"])
def test_a_subset_is_those_examples_under_their_own_numbers(tmp_path: Path, subset: Any, role: str) -> None:
    model = read("gpt2")
    whole = run(tmp_path / "whole", model, role=role, shard_bytes=2500)
    some = run(tmp_path / "some", model, role=role, subset=subset, shard_bytes=2500 if role == "replay" else 900)
    assert some.identity["corpus"]["subset"] == TEST and some.identity["plan"]["count"] == len(TEST)
    assert some.identity["corpus"]["fingerprint"] == CORPUS.fingerprint and some.shards_planned > 1
    assert all_of(some, "/examples/ordinal").tolist() == TEST and [e for e, _ in some.skipped] == [2]
    mine = np.isin(whole.rows.example, TEST)
    np.testing.assert_array_equal(some.rows.example, whole.rows.example[mine])
    np.testing.assert_allclose(some.read("resid.2"), whole.read("resid.2")[mine], atol=1e-5)


def test_a_subset_of_everything_is_the_same_store(tmp_path: Path) -> None:
    model = read("gpt2")
    assert run(tmp_path / "a", model, subset="0:8").content_id == run(tmp_path / "b", model).content_id
    assert run(tmp_path / "c", model, subset="0:7").store_id != Store.open(tmp_path / "a").store_id


def test_long_inputs_are_cut_or_left_out_whole(tmp_path: Path) -> None:
    corpus = corpus_of("the cat is in the the the", "a cat")
    cut = run(tmp_path / "c", masked(), corpus, max_length=5, outputs="last")
    assert np.bincount(cut.rows.example).tolist() == [5, 4] and {e for e, _, _ in cut.missing_words} == {0}
    skipped = run(tmp_path / "s", masked(), corpus, max_length=5, long_inputs="skip", outputs="last")
    assert skipped.skipped == [(0, "too_long")] and np.bincount(skipped.rows.example).tolist() == [0, 4]


def test_workers_and_merging_make_the_same_replay_store(tmp_path: Path) -> None:
    model = read("gpt2")
    whole = run(tmp_path / "whole", model)
    for worker in (1, 0):
        run(tmp_path / f"part{worker}", model, array_size=2, array_index=worker)
        merge(tmp_path / "merged", tmp_path / f"part{worker}")
    assert Store.open(tmp_path / "merged", verification="full").content_id == whole.content_id


def test_every_changed_bit_of_the_outputs_is_found(tmp_path: Path) -> None:
    model = read("gpt2")
    store = run(tmp_path / "s", model)
    file = tmp_path / "s" / "shards" / store._records[0]["file"]
    sound = file.read_bytes()
    for path, entry in store._records[0]["datasets"].items():
        if not path.startswith(("/outputs", "/examples/batch", "/rows/input_id", "/rows/mask")):
            continue
        data = bytearray(sound)
        data[entry["offset"] + entry["nbytes"] // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(CorruptShard, match=path):
            Store.open(tmp_path / "s").dataset(0, path)
        assert Store.open(tmp_path / "s").verify()
    file.write_bytes(sound)
    assert Store.open(tmp_path / "s").verify() == []


def test_outputs_that_contradict_the_shard_are_not_written(tmp_path: Path) -> None:
    model = read("gpt2")
    store = run(tmp_path / "s", model, shard_bytes=1 << 20)
    contents = list[Any]()
    commit = StoreWriter.commit
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(self: StoreWriter, shard: int, content: Any) -> None:
            contents.append(content)
            raise KeyboardInterrupt

        patch.setattr(StoreWriter, "commit", stop)
        run(tmp_path / "t", model, shard_bytes=1 << 20)
    content, outputs = contents[0], contents[0].outputs
    writer = StoreWriter.open(tmp_path / "t", identity=store.identity, environment={})
    for name, bad in (
        ("row", outputs["row"][::-1]),
        ("row", outputs["row"] + 1000),
        ("logits", outputs["logits"][:-1]),
        ("logits", outputs["logits"].astype(np.float64)),
        ("logsumexp", outputs["logsumexp"][:1]),
    ):
        with pytest.raises(BadParameter):
            commit(writer, 0, replace(content, outputs={**outputs, name: bad}))
    with pytest.raises(BadParameter, match="other columns"):
        commit(writer, 0, replace(content, outputs={}))
    assert writer.missing() == [0]
    commit(writer, 0, content)


def test_a_replay_store_is_told_apart_and_not_trained_on(tmp_path: Path) -> None:
    model = read("gpt2")
    store = run(tmp_path / "s", model)
    assert store_info(tmp_path / "s")["role"] == "replay"
    with pytest.raises(BadParameter, match="sequence"):
        train(store, CORPUS, task="sentence_length", probes=["ridge"])
    with pytest.raises(ProvenanceMismatch, match="role"):
        run(tmp_path / "s", model, role="states", rows="piece")


def test_exports_hold_the_outputs(tmp_path: Path) -> None:
    store = run(tmp_path / "s", read("gpt2"), columns="7,11")
    firsts = np.concatenate([store.dataset(s, "/outputs/row") + store.first_row(s) for s in store.shards])
    logits = all_of(store, "/outputs/logits")
    with h5py.File(export(tmp_path / "s", tmp_path / "e.h5")) as file:
        np.testing.assert_array_equal(file["outputs/row"], firsts)
        np.testing.assert_array_equal(file["outputs/logits"], logits)
        np.testing.assert_array_equal(file["rows/input_id"], store.rows.input_id)
    arrays = load_file(export(tmp_path / "s", tmp_path / "e.safetensors"))
    np.testing.assert_array_equal(arrays["outputs.logits"], logits)
    assert arrays["outputs.column"].tolist() == [7, 11]
    np.testing.assert_array_equal(np.load(export(tmp_path / "s", tmp_path / "e") / "outputs.logits.npy"), logits)
    table = pq.read_table(export(tmp_path / "s", tmp_path / "e.parquet"))
    found = table.column("output_logits").to_pylist()
    assert [k for k, one in enumerate(found) if one is not None] == firsts.tolist()
    np.testing.assert_array_equal([one for one in found if one is not None], logits)
    sums = table.column("output_logsumexp").to_pylist()
    np.testing.assert_allclose([one for one in sums if one is not None], all_of(store, "/outputs/logsumexp"))


def test_the_command_line_makes_a_replay_store(tmp_path: Path, corpus_flags: list[str]) -> None:
    flags = ["extract", "--model", str(REFERENCE / "model"), *corpus_flags, "--quiet", "--role", "replay"]
    result = CliRunner().invoke(app, [*flags, "--subset", "test", "--columns", "3,4", "--to", str(tmp_path / "r")])
    assert result.exit_code == 0, result.output
    model = read("reference")
    replay = Replay.open(tmp_path / "r", model)
    found = list[ReplayBatch](replay.batches())
    assert sum(len(batch.examples) for batch in found) == 60 == sum(len(batch.logits) for batch in found)
    for batch in found[:2]:
        torch.testing.assert_close(replay.run(batch, "resid.1"), batch.logits, atol=1e-5, rtol=1e-5)
    result = CliRunner().invoke(app, [*flags, "--subset", "tests", "--to", str(tmp_path / "n")])
    assert result.exit_code == 1 and "did you mean 'test'" in result.stderr


def test_stores_of_states_have_the_identity_they_had() -> None:
    recipe = StoreLayout.of(store_samples.identity())
    assert (recipe.role, recipe.outputs, list(recipe.row_columns)[-1]) == ("states", "none", "word")
