"""Laws of imports: the same numbers train the same probes, other corpora are refused by sentence, unknown stays so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import (
    AlignmentError,
    BadParameter,
    CorpusError,
    NonFiniteStates,
    NotRepresentable,
    ProbingError,
    ProvenanceMismatch,
    UnknownSite,
    UntrustedFile,
)
from probing.provenance import file_sha256
from probing.states.store import Store, StoreWriter, store_info
from probing.states.store.export import export
from probing.text.corpus import Corpus
from tests.conftest import REFERENCE, some
from tests.samples import foreign_samples as foreign
from tests.samples import store_samples as sample
from tests.samples.warm_child import warm_children

FORMATS: dict[str, Callable[[Path, Store, Corpus], Path]] = {
    "activations.hdf5": foreign.neurox_hdf5,
    "activations.json": foreign.neurox_json,
    "offsets.safetensors": foreign.safetensors_with_offset,
    "arrays": foreign.bare_npy,
    "exported.h5": lambda path, store, corpus: export(store.path, path, compress=True),
    "exported": lambda path, store, corpus: export(store.path, path),
    "exported.safetensors": lambda path, store, corpus: export(store.path, path),
    "store": lambda path, store, corpus: Path(shutil.copytree(store.path, path)),
}


@pytest.fixture(scope="module", autouse=True)
def _warm_children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Files are read in children that have loaded the libraries; how children start is a law of test_foreign.py."""
    with warm_children(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(scope="module")
def corpus(small_corpus: dict[str, Path]) -> Corpus:
    return Corpus.read(small_corpus)


@pytest.fixture(scope="module")
def store(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Store:
    model = pb.LanguageModel.load(str(REFERENCE / "model"))
    found = pb.extract(model, corpus, sites="resid.1,resid.2", to=tmp_path_factory.mktemp("own") / "store")
    assert found.n_rows == sum(len(example.words) for example in corpus.examples)
    return found


@pytest.fixture(scope="module")
def files(store: Store, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("theirs")
    return {name: write(folder / name, store, corpus) for name, write in FORMATS.items()}


def trained(store: Store, corpus: Corpus, site: str) -> dict[str, Any]:
    results = pb.train(store, corpus, task="upos", controls=["word_type:draws=1"], sites=site, progress=False)
    (result,) = [result for result in results if result.site == site]
    scores = {(one.measure, one.split): one.score for one in result.measures if one.measure == "accuracy"}
    return {"accuracy": scores, "confusion": result.confusion, "provenance": result.provenance}


@pytest.fixture(scope="module")
def own(store: Store, corpus: Corpus) -> dict[str, Any]:
    return trained(store, corpus, "resid.2")


SLOW = ("exported", "exported.safetensors")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FORMATS])
def test_every_format_trains_the_probes_of_the_store_it_came_from(
    files: dict[str, Path], store: Store, corpus: Corpus, own: dict[str, Any], tmp_path: Path, name: str
) -> None:
    imported = pb.import_states(files[name], corpus, to=tmp_path / "imported")
    sites = ("layer.0", "layer.1") if name.startswith("activations") else store.sites
    assert imported.sites == sites and imported.verify() == []
    for ours, theirs in zip(store.sites, sites, strict=True):
        difference = np.abs(imported.read(theirs) - store.read(ours)).max()
        assert difference <= (1e-8 + 4e-7 if name.endswith(".json") else 0)
    theirs = trained(imported, corpus, sites[1])
    assert theirs["confusion"] == own["confusion"]
    assert theirs["accuracy"] == own["accuracy"]
    assert theirs["provenance"]["imported"]["from"] == name and "imported" not in own["provenance"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["imported"]


def test_what_is_not_known_of_arrays_stays_unknown_in_store_results_and_report(
    files: dict[str, Path], corpus: Corpus, tmp_path: Path
) -> None:
    flags = {"to": tmp_path / "imported", "model": "some-model", "layers": "resid"}
    imported = pb.import_states(files["activations.hdf5"], corpus, **flags)
    assert imported.sites == ("resid.0", "resid.1")
    model = imported.identity["model"]
    assert model["source"] == "imported from activations.hdf5 (said to be of some-model)"
    assert {model[key] for key in ("revision", "weights", "config", "class", "dtype", "remote_code")} == {"unknown"}
    assert imported.identity["tokenizer"] == {"source": "unknown"}
    assert imported.identity["extraction"]["rows"] == "word:unknown"
    assert model["files"] == {"activations.hdf5": file_sha256(files["activations.hdf5"])}
    assert store_info(tmp_path / "imported")["imported"]["provenance"] == "unknown"
    pb.train(
        imported,
        corpus,
        task="upos",
        sites="resid.1",
        controls=["word_type:draws=1"],
        to=tmp_path / "r",
        progress=False,
    )
    page = pb.report(tmp_path / "r").read_text(encoding="utf-8")
    assert "imported from activations.hdf5 (said to be of some-model)" in page
    assert "How the imported states were computed is not known" in page


def test_a_copied_store_keeps_its_content_and_says_that_it_was_imported(
    files: dict[str, Path], store: Store, tmp_path: Path
) -> None:
    imported = pb.import_states(files["store"], to=tmp_path / "imported")
    assert imported.content_id == store.content_id and imported.identity == store.identity
    assert imported.environment["imported"] == {
        "from": "store",
        "format": "probing-activations",
        "provenance": "as the store says",
    }


@pytest.mark.slow
def test_words_that_were_not_extracted_are_missing_in_the_import_too(tmp_path: Path) -> None:
    corpus = Corpus.read({"train": str(REFERENCE / "train.jsonl")}).filter(lambda e: e.id is not None)
    corpus = dataclasses.replace(corpus, examples=corpus.examples[:20])
    model = pb.LanguageModel.load(str(REFERENCE / "model"))
    cut = pb.extract(model, corpus, sites="resid.1", to=tmp_path / "cut", max_length=4)
    assert cut.missing_words
    for name in ("cut.safetensors", "cut.h5", "folder"):
        imported = pb.import_states(export(cut.path, tmp_path / name), corpus, to=tmp_path / f"from-{name}")
        assert [(e, w) for e, w, _ in imported.missing_words] == [(e, w) for e, w, _ in cut.missing_words]
        assert {reason for *_, reason in imported.missing_words} == {"not_in_source"}
        for column in ("example", "word", "char_start", "char_end", "piece_start", "piece_end"):
            assert np.array_equal(getattr(imported.rows, column), getattr(cut.rows, column))


@pytest.mark.parametrize("rows", ["piece", "sentence:last"])
def test_pieces_and_sentences_are_imported_as_what_they_are(corpus: Corpus, tmp_path: Path, rows: str) -> None:
    corpus = dataclasses.replace(corpus, examples=corpus.examples[:30])
    model = pb.LanguageModel.load(str(REFERENCE / "model"))
    own = pb.extract(model, corpus, sites="resid.1", to=tmp_path / "own", rows=rows)
    said = "piece" if rows == "piece" else None
    imported = pb.import_states(export(own.path, tmp_path / "x.h5"), corpus, to=tmp_path / "i", rows=said)
    assert imported.identity["extraction"]["rows"] == ("piece" if said else "sentence:unknown")
    assert np.array_equal(imported.rows.word, own.rows.word)
    assert np.array_equal(imported.rows.char_end, own.rows.char_end)
    assert np.array_equal(imported.read("resid.1"), own.read("resid.1"))


@pytest.mark.slow
def test_half_precision_is_kept_and_double_is_rounded(corpus: Corpus, tmp_path: Path) -> None:
    n_rows = sum(len(example.words) for example in corpus.examples)
    states = np.random.default_rng(0).normal(size=(n_rows, 3))
    for dtype, stored in (("<f2", "float16"), ("<f8", "float32"), (">f4", "float32")):
        folder = tmp_path / dtype[1:]
        folder.mkdir()
        np.save(folder / "embed.npy", states.astype(dtype))
        imported = pb.import_states(folder, corpus, to=tmp_path / f"from{dtype[1:]}")
        assert imported.identity["extraction"]["dtype"] == stored
        assert np.array_equal(imported.read("embed"), states.astype(dtype).astype(np.float32))


def edit_hdf5(path: Path, change: Callable[[Any, dict[str, str]], None]) -> None:
    with h5py.File(path, "r+") as file:
        index = json.loads(file["sentence_to_index"][0])
        change(file, index)
        file["sentence_to_index"][0] = json.dumps(index)


def _other_words(file: Any, index: dict[str, str]) -> None:
    text = next(text for text, number in index.items() if number == "7")
    index[text + " indeed"] = index.pop(text)


def _one_row_less(file: Any, index: dict[str, str]) -> None:
    states = file["7"][:, :-1]
    del file["7"]
    file["7"] = states


def _no_seventh(file: Any, index: dict[str, str]) -> None:
    del file["7"], index[next(text for text, number in index.items() if number == "7")]


@pytest.mark.parametrize(
    ("change", "error"),
    [(_other_words, AlignmentError), (_one_row_less, AlignmentError), (_no_seventh, CorpusError)],
)
def test_a_neurox_file_of_other_sentences_is_refused_by_the_first_that_differs(
    files: dict[str, Path], corpus: Corpus, tmp_path: Path, change: Any, error: type[ProbingError]
) -> None:
    path = Path(shutil.copy(files["activations.hdf5"], tmp_path))
    edit_hdf5(path, change)
    with pytest.raises(error, match=f"sentence {corpus.examples[7].id}\\b"):
        pb.import_states(path, corpus, to=tmp_path / "imported")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_neurox_json_word_that_is_not_the_corpus_s_is_named(
    files: dict[str, Path], corpus: Corpus, tmp_path: Path
) -> None:
    lines = files["activations.json"].read_text(encoding="utf-8").splitlines()
    value = json.loads(lines[3])
    value["features"][1]["token"] = "elsewhere"
    lines[3] = json.dumps(value)
    (tmp_path / "a.json").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(AlignmentError, match=r"(?s)word 2: .*elsewhere.*" + corpus.examples[3].id):
        pb.import_states(tmp_path / "a.json", corpus, to=tmp_path / "imported")


@pytest.mark.slow
def test_offsets_and_counts_of_another_corpus_are_refused(
    files: dict[str, Path], corpus: Corpus, tmp_path: Path
) -> None:
    fewer = dataclasses.replace(corpus, examples=corpus.examples[:-1])
    with pytest.raises(CorpusError, match="260"):
        pb.import_states(files["offsets.safetensors"], fewer, to=tmp_path / "a")
    with pytest.raises(CorpusError, match="one for each word"):
        pb.import_states(files["arrays"], fewer, to=tmp_path / "a")
    tensors = load_file(files["offsets.safetensors"])
    tensors["offset"][5] += 1
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(AlignmentError, match=f"sentence {corpus.examples[4].id}\\b"):
        pb.import_states(tmp_path / "b.safetensors", corpus, to=tmp_path / "a")
    with pytest.raises(ProvenanceMismatch):
        pb.import_states(files["store"], fewer, to=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_word_column_says_which_words_the_rows_are(files: dict[str, Path], corpus: Corpus, tmp_path: Path) -> None:
    tensors = load_file(files["offsets.safetensors"])
    counts = np.diff(tensors["offset"])
    word = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = word != 1
    tensors = {name: values[kept] for name, values in tensors.items() if name != "offset"}
    tensors |= {"offset": np.concatenate([[0], np.cumsum(counts - (counts > 1))]), "word": word[kept]}
    save_file(tensors, tmp_path / "a.safetensors")
    imported = pb.import_states(tmp_path / "a.safetensors", corpus, to=tmp_path / "a")
    assert {w for _, w, _ in imported.missing_words} == {1} and np.array_equal(imported.rows.word, word[kept])
    save_file(tensors | {"word": word[kept][::-1].copy()}, tmp_path / "b.safetensors")
    with pytest.raises(AlignmentError, match="sentence"):
        pb.import_states(tmp_path / "b.safetensors", corpus, to=tmp_path / "b")


@pytest.mark.parametrize(
    ("arrays", "error"),
    some(
        [
            ({"Bad-Name": 3}, UnknownSite),
            ({"embed": np.nan}, NonFiniteStates),
            ({"../up": 3}, UnknownSite),
            ({"embed": 3, "resid.0": 3, "more": None}, BadParameter),
            ({"only": None}, BadParameter),
        ],
        2,
    ),
)
def test_arrays_without_meaning_are_refused(
    corpus: Corpus, tmp_path: Path, arrays: dict[str, Any], error: type[ProbingError]
) -> None:
    n_rows = sum(len(example.words) for example in corpus.examples)
    tensors = {
        name: np.zeros(n_rows, np.int64) if value is None else np.full((n_rows, 4), value, np.float32)
        for name, value in arrays.items()
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(error):
        pb.import_states(tmp_path / "a.safetensors", corpus, to=tmp_path / "imported")


def test_states_that_are_refused_leave_nothing_so_that_the_mended_file_is_imported(
    corpus: Corpus, tmp_path: Path
) -> None:
    states = np.ones((sum(len(example.words) for example in corpus.examples), 4), np.float32)
    for value, dtype, error in ((np.nan, None, NonFiniteStates), (1e30, "float16", NotRepresentable)):
        spoiled = states.copy()
        spoiled[-1, 2] = value
        save_file({"embed": spoiled}, tmp_path / "a.safetensors")
        with pytest.raises(error):
            pb.import_states(tmp_path / "a.safetensors", corpus, to=tmp_path / "new", dtype=dtype)
        assert not (tmp_path / "new").exists()
    save_file({"embed": states}, tmp_path / "a.safetensors")
    assert pb.import_states(tmp_path / "a.safetensors", corpus, to=tmp_path / "new").n_rows == len(states)


def test_nothing_is_imported_from_nothing_or_over_something(
    files: dict[str, Path], corpus: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "none.h5", tmp_path / "empty", REFERENCE / "study.yaml"):
        with pytest.raises(BadParameter):
            pb.import_states(source, corpus, to=tmp_path / "imported")
    with pytest.raises(CorpusError):
        pb.import_states(files["arrays"], to=tmp_path / "imported")
    pb.import_states(files["arrays"], corpus, to=tmp_path / "imported")
    with pytest.raises(ProvenanceMismatch):
        pb.import_states(files["exported"], corpus, to=tmp_path / "imported")


def test_the_command_imports_and_says_so(files: dict[str, Path], corpus_flags: list[str], tmp_path: Path) -> None:
    command = ["store", "import", str(files["activations.hdf5"]), *corpus_flags, "--to", str(tmp_path / "i"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["imported"]["from"] == "activations.hdf5"
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    refused = CliRunner().invoke(app, ["store", "import", str(tmp_path / "a.h5"), *corpus_flags, "--to", "x"])
    assert refused.exit_code == 1 and refused.stderr.startswith("UntrustedFile: ")


def test_a_changed_store_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    shard = next((files["store"] / "shards").glob("*.h5")).name
    for case in ("flipped", "linked", "unfinished"):
        path = Path(shutil.copytree(files["store"], tmp_path / case))
        file = path / "shards" / shard
        if case == "flipped":
            data = bytearray(file.read_bytes())
            data[5000] ^= 1
            file.write_bytes(data)
        elif case == "linked":
            shutil.move(file, tmp_path / "elsewhere.h5")
            file.symlink_to(tmp_path / "elsewhere.h5")
        else:
            next((path / "shards").glob("*.json")).unlink()
        with pytest.raises(UntrustedFile) as caught:
            pb.import_states(path, to=tmp_path / "imported")
        assert caught.value.rule
        assert not (tmp_path / "imported").exists()


def test_a_store_that_does_not_say_what_it_holds_is_refused(tmp_path: Path) -> None:
    identity = sample.identity()
    del identity["extraction"]["rows"]
    writer = StoreWriter.open(tmp_path / "store", identity=identity, environment={})
    for shard in writer.missing():
        writer.commit(shard, sample.content(shard))
    with pytest.raises(UntrustedFile, match=r"identity\.extraction\.rows"):
        pb.import_states(tmp_path / "store", to=tmp_path / "imported")


@pytest.mark.slow
def test_a_killed_import_leaves_a_store_that_the_same_command_finishes(
    files: dict[str, Path], corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probing.states.importing.SHARD_BYTES", 100_000)
    commit, done = StoreWriter.commit, []

    def killed(self: StoreWriter, shard: int, content: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        commit(self, shard, content)
        done.append(shard)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "commit", killed)
        pb.import_states(files["arrays"], corpus, to=tmp_path / "a")
    assert store_info(tmp_path / "a")["shards_done"] == 2
    finished = pb.import_states(files["arrays"], corpus, to=tmp_path / "a")
    whole = pb.import_states(files["arrays"], corpus, to=tmp_path / "b")
    assert finished.shards_planned > 2 and finished.content_id == whole.content_id
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]
