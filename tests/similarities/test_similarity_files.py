"""Similarity on the reference model from end to end: files, resuming, terminal, page, outputs and checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import (
    BadParameter,
    CannotReachFile,
    ConfigError,
    DamagedUnit,
    InputError,
    ProvenanceMismatch,
    UnknownSite,
    UnsupportedModel,
)
from probing.reporting.page import Contents, rendered
from probing.reporting.similarity_sections import similarity_panels, site_maps
from probing.reporting.similarity_words import LIMITS
from probing.results.similarity import CKA, OUTPUT_KL, SimilarityResults
from probing.similarities import similarity
from tests.conftest import REFERENCE
from tests.similarities.test_similarity_laws import cloud, sentences, store_of

MODEL = str(REFERENCE / "model")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_corpus: dict[str, Path]) -> tuple[Path, pb.Corpus]:
    """A folder with the stores of the reference model and of its untrained twin, and their corpus."""
    folder, corpus = tmp_path_factory.mktemp("stores"), pb.Corpus.read({k: str(v) for k, v in small_corpus.items()})
    for name, seed in (("trained", None), ("untrained", 0)):
        model = pb.LanguageModel.load(MODEL, untrained=seed)
        pb.extract(model, corpus, sites="resid.*", rows="word:mean", to=folder / name, progress=False)
    return folder, corpus


def test_the_command_prints_writes_and_reports(made: Any, corpus_flags: list[str], tmp_path: Path) -> None:
    folder, _ = made
    given = [str(folder / "trained"), str(folder / "untrained"), "--twin", str(folder / "untrained"), *corpus_flags]
    command = ["similarity", *given, "--task", "upos", "--permutations", "19", "--to", str(tmp_path), "--quiet"]
    ended = CliRunner().invoke(app, command, env={"COLUMNS": "100"})
    assert ended.exit_code == 0, ended.output
    for part in ("CKA (debiased)", "ceiling", "floor", "that moved most", "Spearman", "What this does not show"):
        assert part in ended.output
    table = pd.read_parquet(tmp_path / "similarity.parquet")
    assert set(table["role"]) == {"pair", "ceiling", "floor"} and table["value"].notna().all()
    assert len(table[(table["measure"] == "cka") & (table["role"] == "pair")]) == 16
    again = CliRunner().invoke(app, command, env={"COLUMNS": "100"})
    assert again.output == ended.output
    reported = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert reported.exit_code == 0, reported.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "How alike states are" in page and all(sentence[:30] in page for sentence in LIMITS)
    assert (tmp_path / "figures" / "similarity.svg").is_file()


def test_results_are_read_again_and_a_killed_run_resumes(tmp_path: Path) -> None:
    corpus = sentences(60, 4)
    X = cloud(240, 6, 0)
    noise = np.random.default_rng(1).standard_normal((2, *X.shape))
    pair = store_of(corpus, {"resid.0": X}, "a"), store_of(corpus, {"resid.0": X + noise[0]}, "b")
    first = similarity(*pair, permutations=19, to=tmp_path, progress=False)
    assert list(SimilarityResults.read(tmp_path)) == list(first)
    reads = [len(store.reads) for store in pair]
    again = similarity(*pair, permutations=19, to=tmp_path, progress=False)
    assert list(again) == list(first) and [len(store.reads) for store in pair] == reads
    pd.testing.assert_frame_equal(again.drift, first.drift)
    damaged = max((tmp_path / "units").glob("*.jsonl"), key=lambda file: file.stat().st_size)
    damaged.write_text(damaged.read_text()[:-20])
    with pytest.warns(DamagedUnit, match=damaged.name):
        assert list(similarity(*pair, permutations=19, to=tmp_path, progress=False)) == list(first)
    third = store_of(corpus, {"resid.0": X + noise[1]}, "c")
    similarity(pair[0], third, permutations=19, to=tmp_path, progress=False)
    assert set(pd.read_parquet(tmp_path / "similarity.parquet")["second"]) == {"b", "c", "a, half 2"}
    assert set(pd.read_parquet(tmp_path / "drift.parquet")["second"]) == {"b", "c"}
    (tmp_path / "similarity.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="cannot be read"):
        SimilarityResults.read(tmp_path)


def test_a_folder_never_mixes_options_nor_has_a_number_twice(tmp_path: Path) -> None:
    corpus, X = sentences(60, 4), cloud(240, 6, 0)
    noise = np.random.default_rng(1).standard_normal((2, *X.shape))
    a, b, c = (
        store_of(corpus, {"resid.0": Z, "resid.1": Z[:, ::-1]}, name)
        for name, Z in (("a", X), ("b", X + noise[0]), ("c", X + noise[1]))
    )

    def run(*stores: Any, **options: Any) -> pd.DataFrame:
        similarity(*stores, to=tmp_path, progress=False, **{"permutations": 0, "pairs": "same"} | options)
        table, names = (
            pd.read_parquet(tmp_path / "similarity.parquet"),
            ["measure", "role", "first", "second", "site_a"],
        )
        assert not table.duplicated(names).any() and len(SimilarityResults.read(tmp_path)) == len(table)
        return table

    run(a, b, sites="resid.0")
    assert set(run(a, c, sites="resid.1")["second"]) == {"b", "c", "a, half 2"}
    assert len(run(a, b)) == 3 * (2 + 1 + 2)  # both sites of b, one of c, and two of the ceiling
    fewer = run(a, b, sites="resid.0", neighbours=5)
    assert len(fewer[fewer["measure"] == "mutual_neighbours"]) == 2  # those with 10 neighbours are gone
    assert set(run(a, b, sites="resid.0", root_seed=4)["site_a"]) == {"resid.0"}
    other = replace(b, states={"resid.0": noise[0].astype(np.float32)}, content_id="f" * 64)
    assert run(a, other, root_seed=4).query("second == 'b' and measure == 'cka'")["value"].item() < 0.2
    assert set(run(b, a, root_seed=4)["first"]) == {"b", "b, half 1"}
    assert set(pd.read_parquet(tmp_path / "drift.parquet")["first"]) == {"b"}


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    corpus, X = sentences(60, 4), cloud(240, 6, 0)
    found = similarity(
        *(store_of(corpus, {"resid.0": X}, name) for name in "ab"), permutations=0, to=tmp_path / "c", progress=False
    )
    with pytest.raises(UnknownSite, match=r"resid\.7"):
        found.moved(3, site="resid.7")
    with pytest.raises(CannotReachFile, match="no such folder"):
        SimilarityResults.read(tmp_path / "nowhere")
    (tmp_path / "c" / "similarity.jsonl").unlink()
    with pytest.raises(ConfigError, match="probing similarity"):
        pb.report(tmp_path / "c")


def test_checkpoints_give_curves_over_steps() -> None:
    corpus, X = sentences(60, 4), cloud(240, 6, 0)
    random = np.random.default_rng(99)
    last = store_of(corpus, {"resid.0": X, "resid.1": X}, "last")
    others = []
    for step, noise in ((0, 8.0), (100, 2.0), (200, 0.5)):
        states = {site: X + noise * random.standard_normal(X.shape) for site in last.sites}
        others.append(store_of(corpus, states, f"step-{step}"))
        identity = others[-1].identity
        identity["model"]["checkpoint"] = {"step": step}
        type_of = type("Checkpoint", (type(last),), {"identity": identity})
        others[-1].__class__ = type_of
    found = similarity(last, *others, permutations=19, progress=False)
    assert {(one.site_a, one.site_b) for one in found.of(CKA)} == {("resid.0", "resid.0"), ("resid.1", "resid.1")}
    assert [one.step for one in found.of(CKA)[::2]] == [0, 100, 200]
    panel = similarity_panels(list(found))[0]
    assert panel.places == (0.0, 100.0, 200.0) and [curve.name for curve in panel.curves] == ["resid.0", "resid.1"]
    values = [point.value for point in panel.curves[0].points]
    assert values == sorted(values) and values[0] < 0.2 < 0.9 < values[-1]
    assert next(one.rows for one in site_maps(list(found))) == ("step-0", "step-100", "step-200")
    assert "Similarity of states" in rendered(Contents(similarity=found)).decode()


def test_outputs_are_compared_by_an_independent_formula(made: Any) -> None:
    folder, corpus = made
    models = [pb.LanguageModel.load(MODEL), pb.LanguageModel.load(MODEL, untrained=0)]
    paths = [folder / "trained", folder / "untrained"]
    options: dict[str, Any] = {
        "corpus": corpus,
        "models": models,
        "permutations": 19,
        "progress": False,
        "sites": "resid.3",
    }
    (found,) = similarity(*paths, kl_texts=400, **options).of(OUTPUT_KL)
    total, tokens = 0.0, 0
    for example in corpus.examples:
        batch = models[0].encode([example.text])
        p, q = (torch.log_softmax(model.logits(batch)[0].double(), -1) for model in models)
        kept = torch.from_numpy(~batch[0].special)
        total += float((p.exp() * (p - q))[kept].sum()) / np.log(2)
        tokens += int(kept.sum())
    assert found.score.value == pytest.approx(total / tokens, rel=1e-4) and found.score.n == tokens
    assert found.score.low < found.score.value < found.score.high and found.clusters == len(corpus)
    (same,) = similarity(paths[0], paths[0], **options | {"models": [models[0], models[0]]}).of(OUTPUT_KL)
    assert same.score.value == pytest.approx(0.0, abs=1e-6) and (same.null_bound or 0.0) > 0.1


def test_models_that_do_not_fit_the_stores_are_refused(made: Any) -> None:
    folder, corpus = made
    model, headless = pb.LanguageModel.load(MODEL), pb.LanguageModel.load(MODEL, kind="base")
    paths = [folder / "trained", folder / "untrained"]
    options: dict[str, Any] = {"corpus": corpus, "progress": False}
    for models, error, said in (
        ([model], BadParameter, "one model for each store"),
        ([model, model], ProvenanceMismatch, "untrained was made by another model"),
        ([headless, headless], UnsupportedModel, "no distribution of the next token"),
    ):
        with pytest.raises(error, match=said):
            similarity(*paths, models=models, **options)
