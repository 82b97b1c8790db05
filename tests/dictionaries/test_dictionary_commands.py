"""`probing dictionary` on the reference model: what it prints, encodes and refuses; and what the loss says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import probing as pb
from probing.cli.commands import app
from probing.dictionaries.losses import loss_recovered, rows_of_model
from probing.errors import BadParameter, CorpusError, ProbingWarning, ReplayUnavailable, UnsupportedModel
from tests.conftest import REFERENCE

SITE, MODEL = "resid.1", str(REFERENCE / "model")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["dictionary", *map(str, arguments)], env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def model() -> pb.LanguageModel:
    return pb.LanguageModel.load(MODEL)


@pytest.fixture(scope="module")
def texts(small_corpus: dict[str, Path]) -> list[str]:
    return [json.loads(line)["text"] for line in small_corpus["train"].read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def trained(model: pb.LanguageModel, texts: list[str]) -> pb.Dictionary:
    """A TopK dictionary of the states at resid.1: 96 latents, 8 a row, by some steps of Adam."""
    width = model.width(SITE)
    seed = pb.Dictionary.random(width, 96, l0=8, states=np.eye(width), seed=0)
    states = torch.from_numpy(rows_of_model(seed, model, texts, SITE)[0].states[SITE])
    bias, decoder = states.mean(0).clone().requires_grad_(), torch.from_numpy(seed.decoder).clone().requires_grad_()
    encoder = torch.from_numpy(seed.decoder.T.copy()).requires_grad_()
    adam = torch.optim.Adam([bias, decoder, encoder], lr=8e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = states[torch.randint(len(states), (128,), generator=generator)]
        values, places = ((rows - bias) @ encoder).relu().topk(8, dim=1)
        latents = torch.zeros(len(rows), 96).scatter(1, places, values)
        loss = ((latents @ decoder + bias - rows) ** 2).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    weights = {"encoder": encoder, "decoder": decoder, "decoder_bias": bias}
    arrays = {name: value.detach().numpy() for name, value in weights.items()}
    return replace(seed, **arrays, site=SITE, model="model", declared={"k": 8})


@pytest.fixture(scope="module")
def folder(trained: pb.Dictionary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("dictionary")
    trained.save(to)
    return to


@pytest.fixture(scope="module")
def states(model: pb.LanguageModel, small_corpus: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("stores") / "states"
    pb.extract(model, pb.Corpus.read(small_corpus), to=to, sites="resid.*", rows="piece", progress=False)
    return to


def test_info_says_what_the_dictionary_is(folder: Path, trained: pb.Dictionary) -> None:
    result = run("info", folder)
    assert result.exit_code == 0, result.output
    for words in ("topk", "96", SITE, trained.content_id[:20], "k 8"):
        assert words in result.stdout
    facts = json.loads(run("info", folder, "--json").stdout)
    assert (facts["latents"], facts["k"], facts["site"]) == (96, 8, SITE)


def test_a_right_dictionary_passes_and_its_loss_is_printed(folder: Path, corpus_flags: list[str]) -> None:
    result = run("check", folder, "--model", MODEL, *corpus_flags, "--max-rows", 800, "--quiet")
    assert result.exit_code == 0, result.output
    for words in (
        "L0",
        "declared 8",
        "variance unexplained",
        "dead latents",
        "loss recovered",
        "put in",
    ):
        assert words in result.stdout
    facts = json.loads(run("check", folder, "--model", MODEL, *corpus_flags, "--quiet", "--json").stdout)
    assert facts["cause"] == "" and facts["fit"]["fvu"] < 0.1 and facts["loss"]["recovered"]["value"] > 0.9
    assert facts["alternatives"]["site: resid.2"]["fvu"] > facts["fit"]["fvu"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"k": 2}, "k = "), ({"normalization": "layer_norm"}, "normalised"), ({"site": "resid.2"}, "resid.1")],
)
def test_a_wrong_setting_ends_in_an_error_with_its_cause(
    change: dict[str, object], cause: str, trained: pb.Dictionary, states: Path, tmp_path: Path
) -> None:
    replace(trained, **change).save(tmp_path)  # type: ignore[arg-type]
    result = run("check", tmp_path, "--states", states, "--quiet")
    assert result.exit_code == 1 and "L0" in result.stdout
    assert result.stderr.startswith("WrongDictionary: ") and cause in result.stderr


def test_states_of_a_store_and_of_the_model_say_the_same(
    trained: pb.Dictionary, model: pb.LanguageModel, states: Path, small_corpus: dict[str, Path]
) -> None:
    store, corpus = pb.Store.open(states), pb.Corpus.read(small_corpus)
    texts = [example.text for example in corpus.examples]
    of_store = pb.check_dictionary(trained, store, max_rows=100_000)
    of_model = pb.check_dictionary(trained, model, texts, max_rows=100_000, progress=False)
    assert of_store.rows == of_model.rows and of_store.loss is None and of_model.loss is not None
    assert of_store.fit.fvu == pytest.approx(of_model.fit.fvu, rel=1e-3)
    assert of_store.fit.l0 == of_model.fit.l0 == 8


def test_rows_of_a_model_are_as_many_as_asked_for_and_cut_texts_are_told(
    trained: pb.Dictionary, model: pb.LanguageModel, texts: list[str]
) -> None:
    for count in (2, 37, 200):
        assert pb.check_dictionary(trained, model, texts, max_rows=count, progress=False).rows == count
    with pytest.warns(ProbingWarning, match=r"1 of 1 texts are longer than the model's .* cut"):
        rows_of_model(trained, model, [" ".join(texts[:400])], SITE)


def test_encode_writes_a_store_that_probes_are_trained_on(
    folder: Path, trained: pb.Dictionary, states: Path, tmp_path: Path, small_corpus: dict[str, Path]
) -> None:
    result = run("encode", folder, "--states", states, "--to", tmp_path / "latents", "--quiet")
    assert result.exit_code == 0, result.output
    store = pb.Store.open(tmp_path / "latents")
    truth = trained.encode(pb.Store.open(states).read(SITE))
    np.testing.assert_allclose(store.latents().toarray(), truth.toarray(), rtol=2**-10)
    results = pb.train(
        store,
        pb.Corpus.read(small_corpus),
        task="upos",
        probes=["linear"],
        controls=[],
        rows="word:mean",
        to=tmp_path / "results",
        progress=False,
    )
    scores = {(one.measure, one.split): one.score.value for result in results for one in result.measures}
    assert scores["accuracy", "test"] > 0.6


def test_bad_input_is_one_readable_block_and_nothing_is_written(
    folder: Path, states: Path, tmp_path: Path, corpus_flags: list[str], trained: pb.Dictionary
) -> None:
    replace(trained, model="gpt2").save(tmp_path / "other")
    to = tmp_path / "latents"
    for command, error in (
        (["info", tmp_path / "none"], "CannotReachFile"),
        (["info", tmp_path], "InputError"),
        (["check", folder], "ConfigError"),
        (["check", folder, "--model", MODEL], "ConfigError"),
        (["check", folder, "--states", states, "--model", MODEL, *corpus_flags], "ConfigError"),
        (["check", folder, "--states", states, "--max-rows", 1], "BadParameter"),
        (["check", folder, "--states", states, "--skip", 900], "CorpusError"),
        (["check", folder, "--states", states, "--site", "resid.77", "--any-model"], "UnknownSite"),
        (["check", tmp_path / "other", "--states", states], "ProvenanceMismatch"),
        (["encode", folder, "--states", tmp_path, "--to", to], "NotAStore"),
        (["encode", folder, "--states", states, "--to", to, "--dtype", "int8"], "ConfigError"),
        (["encode", tmp_path / "other", "--states", states, "--to", to], "ProvenanceMismatch"),
        (["encode", folder, "--states", states, "--site", "resid.0", "--to", to], "ProvenanceMismatch"),
    ):
        result = run(*command, "--quiet")
        assert result.exit_code == 1, (command, result.output)
        assert result.stderr.startswith(f"{error}: "), (command, result.stderr)
        assert not to.exists()


def test_the_loss_of_a_perfect_dictionary_is_the_models_own(model: pb.LanguageModel, texts: list[str]) -> None:
    """States in, the same states out: nothing is lost; zeros in place of all: that is the loss with zeros."""
    width, eye = model.width(SITE), np.eye(model.width(SITE), dtype="f4")
    both = {"encoder": np.concatenate([eye, -eye], axis=1), "decoder": np.concatenate([eye, -eye])}
    perfect = pb.Dictionary(
        architecture="standard", **both, encoder_bias=np.zeros(2 * width), decoder_bias=np.zeros(width)
    )
    inputs = model.encode(texts[:40])
    found = loss_recovered(perfect, model, inputs, SITE, progress=False)
    assert found.recovered.value == pytest.approx(1, abs=1e-5)
    assert found.reconstructed.value == pytest.approx(found.clean.value, abs=1e-5)
    assert found.zero.value > found.clean.value < found.mean.value and found.texts == 40
    logits = model.logits([inputs[0]])[0]
    ids = torch.from_numpy(inputs[0].ids)
    one = torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:])
    alone = loss_recovered(perfect, model, [inputs[0]], SITE, progress=False)
    assert alone.clean.value == pytest.approx(float(one), abs=1e-5) and alone.tokens == len(ids) - 1
    dead = replace(perfect, architecture="jumprelu", threshold=np.full(2 * width, 1e9))
    assert loss_recovered(dead, model, inputs, SITE, progress=False).recovered.value == pytest.approx(0, abs=1e-5)


def test_a_loss_that_cannot_be_measured_is_refused(model: pb.LanguageModel, trained: pb.Dictionary) -> None:
    inputs = model.encode(["nowadays the doctor"])
    with pytest.raises(ReplayUnavailable):
        loss_recovered(trained, model, inputs, "mlp_out.1", progress=False)
    with pytest.raises(CorpusError):
        loss_recovered(trained, model, inputs, SITE, skip=50, progress=False)
    with pytest.raises(UnsupportedModel):
        loss_recovered(trained, pb.LanguageModel.load(MODEL, kind="base"), inputs, SITE, progress=False)
    for name, value in (("max_rows", 0), ("max_rows", 1.5), ("skip", -1), ("seed", -1), ("texts", [None])):
        with pytest.raises(BadParameter):
            pb.check_dictionary(trained, model, **{"texts": ["a"], name: value})  # type: ignore[arg-type]
    with pytest.raises(CorpusError):
        pb.check_dictionary(trained, model, [], progress=False)
