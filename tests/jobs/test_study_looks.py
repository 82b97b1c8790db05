"""Lenses, similarity of states and circuits in a study: as by their commands, done once, refused before any work."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import CannotReachFile, ConfigError, CorpusError, InputError, ProbingError, UnknownName
from probing.jobs.circuit import CircuitJob
from probing.jobs.lens import LensJob
from probing.jobs.similarity import SimilarityJob
from probing.jobs.study import Study
from probing.results.circuit import read_circuit
from probing.results.lens import read_lens
from probing.results.similarity import SimilarityResults
from tests.conftest import REFERENCE

MODEL = str(REFERENCE / "model")
START = """
name: looks
{models}
corpus: {corpus}
extract:
  - {{rows: "word:mean", sites: "resid.0,resid.1"}}
  - {{rows: "word:mean", sites: "resid.0,resid.1", untrained: 0}}
train: {{task: upos, probes: linear, controls: ["word_type:draws=1"]}}
"""
LENS = """
lens:
  {lenses: [tuned, logit], no_controls: true, max_rows: 60, train_rows: 80, dev_rows: 40, epochs: 1, use_rows: 3}
"""
SIMILARITY = "similarity: {sites: resid.1, permutations: 19, neighbour_rows: 100}\n"
CIRCUIT = "circuit: {pairs: pairs.jsonl, method: eap, size: 8, random_circuits: 0}\n"


def study(folder: Path, corpus: dict[str, Path], more: str, models: str = f"model: {MODEL}") -> Study:
    folder.mkdir(exist_ok=True)
    files = "{" + ", ".join(f"{split}: {file}" for split, file in corpus.items()) + "}"
    file = folder / "study.yaml"
    file.write_text(START.format(models=models, corpus=files) + more, encoding="utf-8")
    write_pairs(folder / "pairs.jsonl")
    return Study.from_yaml(file)


def write_pairs(path: Path) -> None:
    """Pairs that differ in their tense, for which the reference model gives another verb."""
    nouns, places = ("painter", "teacher", "sailor", "farmer", "dancer"), ("near", "under", "behind", "beside")
    rows = [
        {
            "clean": f"formerly the old {noun} {place} the garden probably",
            "corrupted": f"nowadays the old {noun} {place} the garden probably",
            "answer": "was",
            "corrupted_answer": "is",
        }
        for noun, place in product(nouns, places)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, small_corpus: dict[str, Path]) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("looks")
    read = study(folder, small_corpus, LENS + SIMILARITY + CIRCUIT)
    return read, read.run(folder / "out", progress=False)


def test_a_study_gives_what_the_commands_give(
    done: tuple[Study, Path], small_corpus: dict[str, Path], tmp_path: Path
) -> None:
    read, page = done
    out = page.parent
    files = [f"{split}={file}" for split, file in small_corpus.items()]
    assert read.lens is not None and read.circuit is not None and read.similarity is not None
    lens = LensJob.read(read.lens.model_dump() | {"model": MODEL, "corpus": files, "to": str(tmp_path / "l")}, "here")
    assert lens.run(progress=False).table().equals(read_lens(out).table())  # type: ignore[union-attr]
    given = read.circuit.rooted(read.root).model_dump() | {"model": MODEL, "to": str(tmp_path / "c")}
    assert CircuitJob.read(given, "here").run(progress=False).edges == read_circuit(out).edges  # type: ignore[union-attr]
    stores = [str(out / "states" / name) for name in ("word-mean", "word-mean-untrained-0")]
    own = {"stores": stores, "corpus": files, "to": str(tmp_path / "s")}
    options = read.similarity.model_dump(exclude={"rows", "against", "stores", "outputs"})
    alike = SimilarityJob.read(options | own, "here").run(progress=False)
    assert [one.score for one in alike] == [one.score for one in SimilarityResults.read(out)]


def test_what_is_done_is_not_done_again(done: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read, page = done

    def not_again(*_: Any, **__: Any) -> Any:
        raise AssertionError("done already")

    before, rows = page.read_bytes(), pd.read_parquet(page.parent / "lens_rows.parquet")
    monkeypatch.setattr("probing.lenses.measure", not_again)
    monkeypatch.setattr("probing.similarities._compared", not_again)
    assert read.run(page.parent, progress=False).read_bytes() == before
    assert pd.read_parquet(page.parent / "lens_rows.parquet").equals(rows)
    with pytest.raises(AssertionError, match="done already"):
        changed = read.lens.model_copy(update={"seed": 1})  # type: ignore[union-attr]
        read.model_copy(update={"lens": changed}).run(page.parent, progress=False)


def test_the_page_and_the_terminal_show_them(done: tuple[Study, Path]) -> None:
    read, page = done
    html = page.read_text(encoding="utf-8")
    for title in ("What lenses read", "Similarity of states", "What hidden states encode"):
        assert title in html
    assert 'id="circuit"' in html
    given = ["run", str(read.root / "study.yaml"), "--to", str(page.parent), "--quiet"]
    shown = CliRunner().invoke(app, given, env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    for words in ("KL(final ‖ lens)", "CKA (debiased)", "circuit", "upos"):
        assert words in shown.stdout, words
    lines = [json.loads(line) for line in CliRunner().invoke(app, [*given, "--json"]).stdout.splitlines()]
    assert {"cka", "procrustes"} & {str(line.get("measure", "")).split("_")[0] for line in lines}
    assert sum(line.get("quantity") == "kl" and line.get("lens") == "logit" for line in lines) > 1
    assert any("sufficient" in str(line.get("word", "")) for line in lines)


def test_several_models_have_folders_and_sections_of_their_own(small_corpus: dict[str, Path], tmp_path: Path) -> None:
    models = f"models: [{MODEL}, {{name: {MODEL}, untrained: 3}}]"
    lens = "lens: {max_rows: 40, use_rows: 0, sites: resid.1}\n"
    read = study(tmp_path, small_corpus, lens + SIMILARITY, models)
    page = read.run(tmp_path / "out", progress=False)
    folders = sorted(file.parent.name for file in (page.parent / "lens").glob("*/lens.json"))
    assert folders == sorted(one.folder for one in read.all_models())
    html = page.read_text(encoding="utf-8")
    assert 'id="lens-1"' in html and 'id="lens-2"' in html
    alike = [one for one in SimilarityResults.read(page.parent) if one.role == "pair"]
    assert {one.provenance["model_a"] for one in alike} != {one.provenance["model_b"] for one in alike}
    assert not any("untrained" in str(one.provenance["model_a"]) for one in alike)  # compared with the trained one
    floor = [one for one in SimilarityResults.read(page.parent) if one.role == "floor"]
    assert floor and all("untrained" in one.second for one in floor)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lens: {lens: tuned}", "did you mean 'lenses'"),
        ("lens: {max_rows: many}", "lens.max_rows"),
        ("lens: tuned", "lens"),
        ("similarity: {permutation: 19}", "did you mean 'permutations'"),
        ("similarity: {first_token: maybe}", "similarity.first_token"),
        ("circuit: {method: eap}", "circuit.pairs"),
        ("circuit: {pairs: p.jsonl, level: head}", "circuit.level"),
    ],
)
def test_a_wrong_key_is_named(small_corpus: dict[str, Path], tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, small_corpus, text + "\n")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lens: {lenses: [logits]}", UnknownName, "logits"),
        ("lens: {max_rows: 0}", ProbingError, "max_rows"),
        ("lens: {lenses: ['tuned:nowhere']}", InputError, "nowhere"),
        ("lens: {lenses: [tuned], split: final}", CorpusError, "no text of final"),
        ("similarity: {permutations: 3}", ProbingError, "permutations"),
        ("similarity: {probe: linear}", ProbingError, "needs a task"),
        ("similarity: {rows: 'sentence:last'}", ConfigError, "found: word:mean"),
        ("similarity: {against: other}", ConfigError, "names none of the models"),
        ("similarity: {stores: [nowhere]}", CannotReachFile, "nowhere"),
        ("similarity: {stores: [nowhere], outputs: true}", ConfigError, "outputs"),
        ("circuit: {pairs: nowhere.jsonl}", InputError, "nowhere.jsonl"),
        ("circuit: {pairs: pairs.jsonl, epsilon: 2}", ProbingError, "epsilon"),
    ],
)
def test_what_is_wrong_is_refused_before_any_work(
    small_corpus: dict[str, Path], tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    read = study(tmp_path, small_corpus, text + "\n")
    with pytest.raises(error) as caught:
        read.run(tmp_path / "out", progress=False)
    assert message in str(caught.value)
    assert not (tmp_path / "out" / "states").exists()


def test_one_model_without_a_twin_has_nothing_to_be_compared_with(
    small_corpus: dict[str, Path], tmp_path: Path
) -> None:
    read = study(tmp_path, small_corpus, SIMILARITY)
    alone = read.model_copy(update={"extract": read.extract[:1]})
    with pytest.raises(ConfigError, match="nothing to be compared with"):
        alone.run(tmp_path / "out", progress=False)


def test_a_lens_that_is_there_is_used_only_for_the_same_texts(tmp_path: Path) -> None:
    texts = ["nowadays the doctor clearly", "formerly the old painter probably"]
    given: dict[str, Any] = {"use_rows": 0, "progress": False, "to": tmp_path, "sites": "resid.1"}
    first = pb.lens(MODEL, pb.Corpus.from_texts(texts), **given)
    again = pb.lens(MODEL, pb.Corpus.from_texts(texts), **given)
    assert again.table().equals(first.table()) and again.rows.equals(first.rows) and again.facts == first.facts
    other = pb.lens(MODEL, pb.Corpus.from_texts(texts[::-1] + texts[:1]), **given)
    assert other.facts["recipe"] != first.facts["recipe"] and other.facts["texts"] == 3
    (tmp_path / "lens.json").write_text("{}", encoding="utf-8")
    assert pb.lens(MODEL, pb.Corpus.from_texts(texts), **given).table().equals(first.table())
