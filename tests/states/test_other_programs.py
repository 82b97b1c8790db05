"""Data sets of lmprobe and hidden states of vLLM become stores whose sites are what they are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import AlignmentError, BadParameter, CorpusError, ProbingError, ProbingWarning, UntrustedFile
from probing.states.importing.layers import missing_layers, sites_of
from probing.states.store import store_info
from tests.conftest import REFERENCE
from tests.samples.warm_child import warm_children

MODEL = str(REFERENCE / "model")


@pytest.fixture(scope="module", autouse=True)
def _warm_children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Files are read in children that have loaded the libraries; how children start is a law of test_foreign.py."""
    with warm_children(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(scope="module")
def corpus() -> pb.Corpus:
    return pb.Corpus.read(REFERENCE / "dev.jsonl", split_seed=0)[::5]


@pytest.fixture(scope="module")
def model() -> pb.LanguageModel:
    return pb.LanguageModel.load(MODEL)


@pytest.fixture(scope="module")
def stores(corpus: pb.Corpus, model: pb.LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pb.Store]:
    to = tmp_path_factory.mktemp("own")
    given: dict[str, Any] = {"sites": "resid.*", "progress": False}
    return {
        "piece": pb.extract(model, corpus, rows="piece", to=to / "piece", **given),
        "last": pb.extract(model, corpus, rows="sentence:last", to=to / "last", **given),
        "replay": pb.extract(model, corpus, role="replay", outputs="none", to=to / "replay", **given),
    }


def lmprobe(to: Path, store: pb.Store, corpus: pb.Corpus, *, text: str = "prompt", **metadata: str) -> Path:
    to.mkdir()
    columns = {text: [e.text for e in corpus], "label": list(range(len(corpus)))}
    said = {f"lmprobe:{key}": value for key, value in ({"version": "1"} | metadata).items()}
    pq.write_table(pa.table(columns).replace_schema_metadata(said), to / "index.parquet")
    for layer, site in enumerate(store.sites):
        save_file({"activations": store.read(site)}, to / f"layer_{layer}.safetensors")
    return to


def vllm(to: Path, store: pb.Store, *, order: Any = None, more: int = 0, ids: str = "token_ids") -> Path:
    to.mkdir()
    states = np.stack([store.read(site) for site in store.sites], axis=1)
    example = store.rows.example
    assert store.rows.input_id is not None
    for number, e in enumerate(np.unique(example) if order is None else order):
        rows = np.flatnonzero(example == e)
        pieces, found = states[rows], store.rows.input_id[rows]
        pieces = np.concatenate([pieces, pieces[:more] + 1])  # what was generated
        found = np.concatenate([found, np.arange(more)])
        save_file({"hidden_states": np.ascontiguousarray(pieces), ids: found}, to / f"req-{number}.safetensors")
    return to


def test_lmprobe_gives_the_states_under_the_sites_that_they_are(
    stores: dict[str, pb.Store], corpus: pb.Corpus, tmp_path: Path
) -> None:
    own = stores["last"]
    source = lmprobe(tmp_path / "theirs", own, corpus, model="them/model")
    last = len(own.sites) - 1
    sites = {
        "vllm": list(own.sites),
        "resid": list(own.sites),
        f"hf:{last}": [*own.sites[:-1], "final_norm"],
        "blocks": [f"resid.{k + 1}" for k in range(last + 1)],
        "layer": [f"layer.{k}" for k in range(last + 1)],
    }
    for layers, names in sites.items():
        store = pb.import_states(source, corpus, to=tmp_path / layers.replace(":", ""), layers=layers)
        assert list(store.sites) == sorted(names, key=lambda name: pb.Site.parse(name).order)
        for ours, theirs in zip(names, own.sites, strict=True):
            assert np.array_equal(store.read(ours), own.read(theirs))
        assert store.identity["extraction"]["rows"].startswith("sentence")
        imported = store_info(store.path)["imported"]
        assert imported["said"]["model"] == "them/model" and imported["not_found"] == []


def test_what_an_index_lacks_is_said(stores: dict[str, pb.Store], corpus: pb.Corpus, tmp_path: Path) -> None:
    source = lmprobe(tmp_path / "theirs", stores["last"], corpus, text="who_knows")
    store = pb.import_states(source, corpus, to=tmp_path / "s", layers="resid")
    assert len(store.environment["imported"]["not_found"]) == 2


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(0, 3))
def test_missing_layers_are_those_between_others(numbers: set[int], more: int) -> None:
    columns = [str(number) for number in numbers]
    first, last = min(numbers), max(numbers)
    listed = sorted(numbers)
    is_regular = len(listed) > 2 and listed[1] > first + 1 and listed == list(range(first, last + 1, listed[1] - first))
    wanted = [] if is_regular else sorted(set(range(first, last)) - numbers)
    assert missing_layers(columns, "layer") == missing_layers([*columns, "final_norm"], None) == wanted
    of_all = sorted(set(range(last + more + 1)) - numbers)
    assert missing_layers(columns, f"hf:{last + more}") == ([] if is_regular else of_all)


def test_a_gap_in_the_layers_is_said_and_recorded(
    stores: dict[str, pb.Store], corpus: pb.Corpus, tmp_path: Path
) -> None:
    source = lmprobe(tmp_path / "theirs", stores["last"], corpus)
    (source / "layer_1.safetensors").unlink()
    with pytest.warns(ProbingWarning, match="layer 1 of theirs is missing"):
        store = pb.import_states(source, corpus, to=tmp_path / "s", layers="resid")
    assert "resid.1" not in store.sites and "resid.2" in store.sites
    assert "layer 1" in store_info(store.path)["imported"]["not_found"]
    done = CliRunner().invoke(app, ["store", "info", str(store.path)])
    assert "layer 1" in done.output
    with pytest.warns(ProbingWarning, match="layers 1, 4, 5 of theirs are missing"):
        pb.import_states(source, corpus, to=tmp_path / "more", layers="hf:5")


def test_requests_with_a_tokenizer_are_the_pieces_of_an_extraction(
    stores: dict[str, pb.Store], corpus: pb.Corpus, tmp_path: Path
) -> None:
    own = stores["piece"]
    order = np.random.default_rng(0).permutation(len(corpus))  # requests end in any order
    for name, more in (("alone", 0), ("generated", 3)):
        source = vllm(tmp_path / name, stores["replay"], order=order, more=more)
        store = pb.import_states(source, corpus, to=tmp_path / f"{name}s", layers="vllm", tokenizer=MODEL)
        assert store.sites == own.sites
        for column in own.row_columns:
            assert np.array_equal(getattr(store.rows, column), getattr(own.rows, column)), column
        for site in own.sites:
            np.testing.assert_allclose(store.read(site), own.read(site), atol=2e-5)
    trained = [pb.train(s, corpus, task="upos", sites="resid.2", progress=False) for s in (store, own)]
    values = [[round(r.judged("accuracy").score.value, 3) for r in results] for results in trained]
    assert values[0] == pytest.approx(values[1], abs=0.01)


def test_requests_without_a_tokenizer_are_pooled_in_order(
    stores: dict[str, pb.Store], corpus: pb.Corpus, tmp_path: Path
) -> None:
    replay = stores["replay"]
    source = vllm(tmp_path / "theirs", replay)
    ids = ",".join(str(3 * k) for k in range(len(replay.sites)))
    for rows in ("sentence:last", "sentence:mean"):
        to = tmp_path / rows.replace(":", "")
        store = pb.import_states(source, corpus, to=to, layers=f"vllm:{ids}", rows=rows)
        assert list(store.sites) == [f"resid.{3 * k}" for k in range(len(replay.sites))]
        for ours, theirs in zip(store.sites, replay.sites, strict=True):
            pieces = [replay.read(theirs, np.flatnonzero(replay.rows.example == e)) for e in range(len(corpus))]
            wanted = np.array([one[-1] if rows == "sentence:last" else one.mean(axis=0) for one in pieces])
            np.testing.assert_allclose(store.read(ours), wanted, atol=1e-6)


def test_what_layers_are_has_to_be_said(stores: dict[str, pb.Store], corpus: pb.Corpus, tmp_path: Path) -> None:
    sources = lmprobe(tmp_path / "a", stores["last"], corpus), vllm(tmp_path / "b", stores["replay"])
    for source in sources:
        with pytest.raises(BadParameter, match=r"(?s)--layers .*final norm"):
            pb.import_states(source, corpus, to=tmp_path / "s", rows="sentence:last")
        with pytest.raises(BadParameter, match="--layers"):
            pb.import_states(source, corpus, to=tmp_path / "s", rows="sentence:last", layers="")
    flags = ["--corpus", str(REFERENCE / "dev.jsonl"), "--to", str(tmp_path / "s")]
    done = CliRunner().invoke(app, ["store", "import", str(sources[1]), *flags])
    assert done.exit_code == 1 and "--layers" in done.output
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("layers", "columns", "words"),
    [
        ("hf", ["0"], "hf:L"),
        ("hf:2", ["0", "3"], "layer 3"),
        ("vllm:1,2", ["0"], "1 layers"),
        ("vllm:a", ["0"], "another form"),
        ("blocks:1", ["0"], "another form"),
    ],
)
def test_layers_of_another_form_are_refused(layers: str, columns: list[str], words: str) -> None:
    with pytest.raises(BadParameter, match=words):
        sites_of(columns, layers, must_say=True, where="x")


def test_other_texts_and_pieces_are_refused(stores: dict[str, pb.Store], corpus: pb.Corpus, tmp_path: Path) -> None:
    requests = vllm(tmp_path / "requests", stores["replay"])
    index = lmprobe(tmp_path / "index", stores["last"], corpus)
    turned = pb.Corpus(corpus.examples[::-1])
    given: dict[str, Any] = {"to": tmp_path / "s", "layers": "vllm"}
    refused: list[tuple[type[ProbingError], Any]] = [
        (AlignmentError, lambda: pb.import_states(index, turned, **given)),
        (CorpusError, lambda: pb.import_states(index, corpus[1:], **given)),
        (CorpusError, lambda: pb.import_states(requests, corpus[1:], rows="sentence:last", **given)),
        (BadParameter, lambda: pb.import_states(requests, corpus, **given)),
        (BadParameter, lambda: pb.import_states(requests, corpus, rows="word:mean", tokenizer=MODEL, **given)),
        (BadParameter, lambda: pb.import_states(requests, corpus, tokenizer=str(tmp_path), **given)),
        (
            AlignmentError,
            lambda: pb.import_states(requests, pb.Corpus.from_texts(["another text"]), tokenizer=MODEL, **given),
        ),
    ]
    for error, made in refused:
        with pytest.raises(error):
            made()
        assert not (tmp_path / "s").exists()


def spoiled(folder: Path) -> dict[str, Path]:
    """Sources that break a rule."""
    made = {
        name: folder / name for name in ("no_states", "two_axes", "few_ids", "uneven", "no_mark", "no_number", "junk")
    }
    for path in made.values():
        path.mkdir()
    three = np.zeros((2, 3, 4), np.float32)
    save_file({"states": three}, made["no_states"] / "r-0.safetensors")
    save_file({"hidden_states": three[0]}, made["two_axes"] / "r-0.safetensors")
    save_file({"hidden_states": three, "token_ids": np.zeros(3, np.int64)}, made["few_ids"] / "r-0.safetensors")
    save_file({"hidden_states": three}, made["uneven"] / "r-0.safetensors")
    save_file({"hidden_states": three[:, :2].copy()}, made["uneven"] / "r-1.safetensors")
    texts = pa.table({"prompt": ["one text", "another text"]})
    for name in ("no_mark", "no_number", "junk"):
        said = {} if name == "no_mark" else {"lmprobe:version": "1"}
        pq.write_table(texts.replace_schema_metadata(said), made[name] / "index.parquet")
        file = "states.safetensors" if name == "no_number" else "layer_0.safetensors"
        save_file({"activations": np.zeros((2, 4), np.float32)}, made[name] / file)
    (made["junk"] / "index.parquet").write_bytes(b"PAR1" + bytes(200) + b"PAR1")
    return made


def test_files_that_break_a_rule_are_refused(tmp_path: Path) -> None:
    corpus = pb.Corpus.from_texts(["one text", "another text"])
    for name, source in spoiled(tmp_path).items():
        expected = BadParameter if name == "uneven" else UntrustedFile
        with pytest.raises(expected):
            pb.import_states(source, corpus, to=tmp_path / "s", layers="vllm", rows="sentence:last")
        assert not (tmp_path / "s").exists(), name


def test_the_command_imports_both(stores: dict[str, pb.Store], corpus: pb.Corpus, tmp_path: Path) -> None:
    lines = [json.dumps({"text": e.text, "words": list(e.forms)}) for e in corpus]
    (tmp_path / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = vllm(tmp_path / "theirs", stores["replay"])
    flags = ["--corpus", str(tmp_path / "c.jsonl"), "--layers", "vllm", "--tokenizer", MODEL]
    done = CliRunner().invoke(app, ["store", "import", str(source), *flags, "--to", str(tmp_path / "s"), "--json"])
    assert done.exit_code == 0, done.output
    assert pb.Store.open(tmp_path / "s").n_rows == stores["piece"].n_rows
