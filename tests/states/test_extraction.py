"""Laws of extraction: rows are the pieces' states, resuming changes nothing, and what is lost is named."""

from __future__ import annotations

import random
import subprocess
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from probing.errors import (
    AlignmentError,
    BadParameter,
    CorpusError,
    NonFiniteStates,
    ProvenanceMismatch,
    UnknownSite,
    UnsupportedModel,
)
from probing.models.batching import length_sorted_batches
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from probing.states.store import Store, StoreWriter
from probing.text.corpus import Corpus
from tests.conftest import REFERENCE, ROOT
from tests.samples.tiny_models import build, byte_tokenizer, corpus_of, language_model

TEXTS = [
    "the thing is being",
    "a",
    "",
    "über the 日本 thing",
    "in the inning the thing",
    "the thing is being",
    "one two three four five six seven",
    "   ",
    "x y",
]
CORPUS = corpus_of(*TEXTS)
SITES = ("resid.0", "resid.1", "resid.2")


def run(folder, family="gpt2", corpus=CORPUS, **options):
    return extract(language_model(family), corpus, to=folder, progress=False, **options)


def content(store: Store):
    names = ("example", "piece_start", "piece_end", "char_start", "char_end", "word")
    table = {name: np.asarray(getattr(store.rows, name)) for name in names}
    return table | {site: np.asarray(store.read(site)) for site in SITES}


@pytest.mark.parametrize("pool", ["mean", "first", "last", "max"])
def test_word_rows_are_pooled_from_the_rows_of_a_piece_store(tmp_path, pool):
    words, pieces = run(tmp_path / "w", rows=f"word:{pool}"), run(tmp_path / "p", rows="piece")
    how = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0), "first": lambda x: x[0], "last": lambda x: x[-1]}
    w, p = content(words), content(pieces)
    assert len(w["word"]) == sum(len(e.words) for e in CORPUS.examples)
    for r in range(len(w["word"])):
        mine = (p["example"] == w["example"][r]) & (p["word"] == w["word"][r])
        for site in SITES:
            np.testing.assert_allclose(w[site][r], how[pool](p[site][mine]), atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "first", "last", "cls"])
def test_sentence_rows_pool_content_pieces(tmp_path, pool):
    store = run(tmp_path, "bert", corpus_of("the cat", "a"), rows=f"sentence:{pool}")
    model = language_model("bert")
    for r, text in enumerate(("the cat", "a")):
        state = model.states(model.encode([text]), ["resid.2"])["resid.2"][0].numpy()
        inner = state[1:-1]
        expected = {"mean": inner.mean(0), "first": inner[0], "last": inner[-1], "cls": state[0]}[pool]
        np.testing.assert_allclose(store.read("resid.2")[r], expected, atol=1e-5)


def test_duplicate_sentences_have_equal_states_and_run_once(tmp_path, monkeypatch):
    rows_run, read = [], LanguageModel.states
    monkeypatch.setattr(
        LanguageModel, "states", lambda self, batch, sites: rows_run.append(len(batch)) or read(self, batch, sites)
    )
    table = content(run(tmp_path))
    for site in SITES:
        np.testing.assert_array_equal(table[site][table["example"] == 0], table[site][table["example"] == 5])
    assert sum(rows_run) <= len(TEXTS) - 3 + 1  # less one duplicate and two empty ones; one pass may learn the widths


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_workers_in_any_order_make_the_store_that_one_process_makes(tmp_path, order):
    whole = run(tmp_path / "whole", shard_bytes=1500)
    planned = len(whole.identity["plan"]["starts"])
    assert planned >= 4
    for step, worker in enumerate(order):
        found = run(tmp_path / "parts", shard_bytes=1500, array_size=4, array_index=worker)
        assert (found.shards_done == planned) == (step == 3) == (tmp_path / "parts" / "seal.json").exists()
    assert Store.open(tmp_path / "parts").content_id == whole.content_id


@pytest.mark.parametrize("worker", [-1, 2])
def test_a_worker_that_cannot_be_is_refused(tmp_path, worker):
    with pytest.raises(BadParameter, match="no such part of the array"):
        run(tmp_path / "s", array_size=2, array_index=worker)


def test_a_module_path_makes_a_site_and_is_part_of_what_the_store_is(tmp_path):
    model = LanguageModel.from_modules(build("gpt2"), byte_tokenizer())
    store = extract(model, CORPUS, sites="resid.0,inner.1=transformer.h.1.mlp.c_fc", to=tmp_path / "a", progress=False)
    assert store.sites == ("resid.0", "inner.1") and store.width("inner.1") == 64
    assert store.identity["extraction"]["modules"] == {"inner.1": "h.1.mlp.c_fc"}
    other = LanguageModel.from_modules(build("gpt2"), byte_tokenizer())
    with pytest.raises(ProvenanceMismatch, match="modules"):
        extract(other, CORPUS, sites="resid.0,inner.1=h.0.mlp.c_fc", to=tmp_path / "a", progress=False)


def mixing(*, undone: bool):
    """A GPT-2 with a module whose output holds a sum over the batch; `undone`: which the next one takes off again."""
    model, sums = build("gpt2"), []
    mlp = model.transformer.h[1].mlp
    first, then = mlp.c_fc.forward, mlp.act.forward

    def mixed(x):
        sums.append(x[:, 0, 0].sum())
        return first(x) + sums[-1]

    mlp.c_fc.forward = mixed
    if undone:
        mlp.act.forward = lambda x: then(x - sums[-1])
    return LanguageModel.from_modules(model, byte_tokenizer(), check=False)


def test_a_module_that_mixes_the_batch_is_no_site():
    model = mixing(undone=True)
    with pytest.raises(UnsupportedModel, match=r"inner\.1 changes with the batch"):
        model.add_site("inner.1", "h.1.mlp.c_fc")
    assert "inner.1" not in model.sites


def test_a_model_that_mixes_the_batch_is_read_one_input_at_a_time(tmp_path):
    model = mixing(undone=False)
    model.add_site("inner.1", "h.1.mlp.c_fc")
    stores = [
        extract(model, CORPUS, sites="resid.2,inner.1", to=tmp_path / str(n), tokens_per_batch=n, progress=False)
        for n in (1, 4096)
    ]
    for site in ("resid.2", "inner.1"):
        np.testing.assert_allclose(stores[0].read(site), stores[1].read(site), atol=1e-5)


def test_states_do_not_depend_on_batch_or_shard_size(tmp_path):
    one, other = run(tmp_path / "a"), run(tmp_path / "b", tokens_per_batch=1, shard_bytes=1500)
    assert len(one.identity["plan"]["starts"]) == 1 < len(other.identity["plan"]["starts"])
    for name, values in content(one).items():
        np.testing.assert_allclose(values, content(other)[name], atol=1e-5)


def test_texts_without_words_have_no_rows_and_a_reason(tmp_path):
    store = run(tmp_path)
    assert sorted(store.skipped) == [(2, "nothing_selected"), (7, "nothing_selected")]


def test_truncated_words_are_counted_and_named(tmp_path):
    store = run(tmp_path, max_length=10, corpus=corpus_of("one two three four", "a b"))
    assert sorted(store.missing_words) == [(0, 2, "truncated"), (0, 3, "truncated")]
    assert content(store)["word"].tolist() == [0, 1, 0, 1]


def test_inputs_beyond_the_positions_of_the_model_are_truncated(tmp_path):
    store = run(tmp_path, corpus=corpus_of("abcdefghi " * 20))
    assert len(content(store)["word"]) == 6  # 64 positions, ten pieces a word
    assert len(store.missing_words) == 14


def test_long_inputs_are_skipped_or_refused_as_told(tmp_path):
    corpus = corpus_of("one two three four", "a b")
    store = run(tmp_path / "s", corpus=corpus, max_length=10, long_inputs="skip")
    assert content(store)["example"].tolist() == [1, 1] and list(store.skipped) == [(0, "too_long")]
    assert not list(store.missing_words)
    with pytest.raises(CorpusError, match="sentence s0"):
        run(tmp_path / "r", corpus=corpus, max_length=10, long_inputs="refuse")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("k", [0, 1, 3])
def test_run_stopped_at_a_commit_and_resumed_equals_an_uninterrupted_run(tmp_path, monkeypatch, k):
    whole = run(tmp_path / "whole", shard_bytes=1500)
    commit, calls = StoreWriter.commit, []

    def stopping(self, shard, content):
        calls.append(shard)
        if len(calls) == k + 1:
            raise KeyboardInterrupt
        commit(self, shard, content)

    monkeypatch.setattr(StoreWriter, "commit", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", shard_bytes=1500)
    run(tmp_path / "part", shard_bytes=1500)
    assert len(calls) == len(whole.identity["plan"]["starts"]) + 1
    resumed = Store.open(tmp_path / "part")
    for name, values in content(whole).items():
        np.testing.assert_array_equal(values, content(resumed)[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_dtype_is_a_rounding_of_float32(tmp_path, dtype):
    full, narrow = run(tmp_path / "f"), run(tmp_path / "n", dtype=dtype)
    a, b = np.asarray(full.read("resid.2")), np.asarray(narrow.read("resid.2"), dtype=np.float32)
    expected = torch.from_numpy(a.copy()).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(b, expected)


def test_bfloat16_models_are_read(tmp_path):
    model = LanguageModel.from_modules(build("llama").to(torch.bfloat16), byte_tokenizer())
    store = extract(model, CORPUS, to=tmp_path, progress=False)
    assert store.identity["extraction"]["dtype"] == "bfloat16" == store.identity["model"]["dtype"]


def test_another_recipe_in_the_same_place_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ProvenanceMismatch, match="rows"):
        run(tmp_path, rows="word:last")


def test_nan_states_name_site_and_sentence(tmp_path):
    broken = build("gpt2")
    model = LanguageModel.from_modules(broken, byte_tokenizer())
    with torch.no_grad():
        broken.transformer.wte.weight[ord("y") - ord("!")] = float("nan")
    with pytest.raises(NonFiniteStates, match=r"resid\.0, sentence s8"):
        extract(model, CORPUS, to=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sites": "resid.9"}, UnknownSite, "resid.2"),
        ({"rows": "word:sum"}, BadParameter, "word:mean|word:max"),
        ({"rows": "sentence:cls"}, BadParameter, "CLS"),
        ({"dtype": "int8"}, BadParameter, "float32"),
        ({"max_length": 65}, BadParameter, "4 to 64"),
        ({"corpus": Corpus(())}, CorpusError, "nothing"),
        ({"long_inputs": "drop"}, BadParameter, "truncate"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        run(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_overlapping_words_are_refused_before_anything_is_written(tmp_path):
    bad = corpus_of("abcd").examples[0]
    bad = type(bad)(id="twisted", text="abcd", words=((0, 3), (2, 4)))
    with pytest.raises(AlignmentError, match="twisted"):
        run(tmp_path / "s", corpus=Corpus((bad,)))
    assert not (tmp_path / "s").exists()


def test_batches_hold_like_lengths_within_the_budget_and_every_input_once():
    lengths = [3, 9, 0, 4, 9, 30, 1, 8]
    batches = length_sorted_batches(lengths, 18)
    assert sorted(i for batch in batches for i in batch) == [0, 1, 3, 4, 5, 6, 7]
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 18 for b in batches)
    assert batches[0] == [5] and batches[1] == [1, 4]


def test_batches_are_the_cheapest_cuts_of_the_sorted_inputs():
    rng = random.Random(0)
    for _ in range(50):
        lengths = sorted((rng.randint(1, 12) for _ in range(9)), reverse=True)
        budget, one_pass = rng.choice((12, 20, 40)), rng.choice((0, 3, 10))
        cuts = ([0, *inner, 9] for n in range(9) for inner in combinations(range(1, 9), n))
        allowed = [
            sum(one_pass + lengths[a] * (b - a) for a, b in pairwise(cut))
            for cut in cuts
            if all(b - a == 1 or lengths[a] * (b - a) <= budget for a, b in pairwise(cut))
        ]
        found = length_sorted_batches(lengths, budget, one_pass)
        assert sum(one_pass + lengths[batch[0]] * len(batch) for batch in found) == min(allowed)


def test_bar_is_shown_when_asked_for(tmp_path, capsys):
    extract(language_model("gpt2"), CORPUS, to=tmp_path, progress=True)
    assert "extracting" in capsys.readouterr().err


@pytest.mark.slow
def test_moments_are_accepted_for_one_more_version_without_effect(
    tmp_path: Path, corpus_flags: list[str], warm: list[str]
) -> None:
    command = ["extract", "--model", str(REFERENCE / "model"), *corpus_flags, "--moments", "train"]
    done = subprocess.run(
        [*warm, "-m", "probing", *command, "--to", str(tmp_path / "s")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "`moments` has no effect any more" in done.stderr
    assert not (tmp_path / "s" / "moments").exists()
