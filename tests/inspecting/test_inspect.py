"""Laws of an inspection: states by hand, geometry, comparison of texts, typed refusals, files, page and command."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM
from typer.testing import CliRunner

import probing as pb
from probing.cli.commands import app
from probing.errors import (
    AlignmentError,
    BadParameter,
    ConfigError,
    CorpusError,
    UnknownName,
    UnknownSite,
    UnsupportedModel,
)
from probing.inspecting.states import geometry_of, sites_beside, token_columns
from probing.jobs.inspect import InspectJob
from probing.reporting.inspection_page import write_page
from probing.results.inspection import ONE_TEXT
from probing.statistics.clusters import mean_intervals
from tests.conftest import REFERENCE
from tests.samples.planted_heads import TEXT, planted_model
from tests.samples.tiny_models import build, byte_tokenizer, language_model, wordpiece_tokenizer

MODEL = str(REFERENCE / "model")
SENTENCES = ["nowadays the doctor behind the window clearly", "the teachers near the old door probably"]


@pytest.fixture(scope="module")
def model() -> pb.LanguageModel:
    return pb.LanguageModel.load(MODEL, attention="eager", check=False)


def test_columns_of_a_state_by_hand() -> None:
    states = torch.ones(1, 2, 64)
    states[0, 1, 5] = 2000.0
    previous = torch.zeros(2, 64)
    previous[:, 0] = 2.0
    found = token_columns(states, {"previous": previous, "mlp": states[0] - previous})
    assert found["norm"] == pytest.approx([8, np.sqrt(63 + 2000**2)])
    assert found["cosine_to_previous"][0] == pytest.approx(1 / 8)
    assert found["mlp_norm"][0] == pytest.approx(8) and found["mlp_cosine"][0] == pytest.approx(-1 / 8)
    assert found["coordinate_1"][1] == 5 and found["z_1"][1] == pytest.approx(np.sqrt(63), rel=1e-6)
    assert found["largest_share"][0] == pytest.approx(3 / 64)
    assert [found[name].tolist() for name in ("over_100_medians", "over_1000_medians", "massive")] == [[0, 1]] * 3


def test_geometry_of_known_states() -> None:
    random = np.random.default_rng(0)
    axes, texts = np.kron(np.eye(6), np.array([[1.0], [-1.0]])), np.arange(12) % 4
    found = geometry_of(axes, texts, np.arange(12))
    assert found["participation_ratio"] == pytest.approx(6) and found["self_similarity"] is None
    same = random.standard_normal((3, 5))[[0, 1, 2, 0, 1, 2]]
    found = geometry_of(same, np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2]))
    unit = same[:3] / np.linalg.norm(same[:3], axis=1, keepdims=True)
    assert found["self_similarity"] == pytest.approx(1)
    assert found["anisotropy"] == pytest.approx((unit @ unit.T).mean())
    assert found["contextual_similarity"] == pytest.approx(1 - (unit @ unit.T).mean())
    assert geometry_of(same, np.zeros(6), np.arange(6))["anisotropy"] is None


def test_intervals_of_means_cover_and_know_what_is_missing() -> None:
    random, covered = np.random.default_rng(1), []
    for seed in range(60):
        values = random.standard_normal((24, 2)) + np.repeat(random.standard_normal(8), 3)[:, None]
        values[0, 1] = np.nan
        means, bounds = mean_intervals(values, np.repeat(np.arange(8), 3), seed=seed, resamples=300)
        assert means == pytest.approx(np.nanmean(values, 0))
        covered += [low <= 0 <= high for low, high in bounds]
    assert np.mean(covered) > 0.85
    assert np.isnan(mean_intervals(np.ones((3, 1)), np.zeros(3), seed=0)[1]).all()


def test_states_are_those_of_the_model_and_token_0_stands_apart(model: pb.LanguageModel) -> None:
    found = pb.inspect(model, SENTENCES)
    assert (
        found.heads is None and found.checks is None and list(found.sites["site"]) == [f"resid.{k}" for k in range(4)]
    )
    encoded = model.encode(SENTENCES)
    for number in range(2):
        states = model.states([encoded[number]], ["resid.2"])["resid.2"][0]
        rows = found.tokens[(found.tokens["text"] == number) & (found.tokens["site"] == "resid.2")]
        assert rows["norm"].to_numpy() == pytest.approx(states.norm(dim=1).numpy(), rel=1e-5)
    rest = found.tokens[(found.tokens["site"] == "resid.2") & (found.tokens["position"] > 0)]["norm"]
    assert found.sites["norm_median"][2] == pytest.approx(rest.median())
    added = model.states(encoded[:1], ["resid.0", "attn_out.0", "mlp_out.0", "resid.1"])
    total = added["resid.0"] + added["attn_out.0"] + added["mlp_out.0"]
    assert torch.allclose(total, added["resid.1"], atol=1e-4)


def test_one_text_has_no_interval_and_says_so(model: pb.LanguageModel) -> None:
    found = pb.inspect(model, SENTENCES[0], check=True, progress=False)
    assert ONE_TEXT in found.notes and found.checks is not None and found.checks["kl_low"].isna().all()
    assert set(found.checks["replacement"]) == {"uniform", "permuted", "mean_output"}
    assert found.heads is not None and found.heads["low"].isna().all()


def test_two_texts_are_compared_token_by_token_or_by_spans(model: pb.LanguageModel) -> None:
    one, other = "the doctor behind the window", "the doctor behind the windows now"
    with pytest.raises(BadParameter, match="unequal length"):
        pb.inspect(model, one, against=other)
    found = pb.inspect(model, one, against=other, spans={"place": ("behind the", "behind the")}, attention=True)
    assert found.comparison is not None and found.comparison.heads is None
    assert found.comparison.states["distance"].max() < 1e-4  # a causal model cannot know what comes later
    same = pb.inspect(model, one, against=one, attention=True).comparison
    assert same is not None and same.heads is not None and same.heads["largest_variation"].max() < 1e-9
    assert same.states["cosine"].min() > 1 - 1e-9
    apart = pb.inspect(model, one, against="the farmer behind the window", attention=True).comparison
    assert apart is not None and apart.heads is not None and apart.heads["mean_variation"].max() > 1e-3
    with pytest.raises(BadParameter, match="exactly once"):
        pb.inspect(model, one, against=other, spans={"place": ("nowhere", "behind")})
    with pytest.raises(BadParameter, match="one text is compared"):
        pb.inspect(model, SENTENCES, against=other)


def test_what_cannot_be_read_is_refused_by_name(model: pb.LanguageModel) -> None:
    sdpa = pb.LanguageModel.load(MODEL, attention="sdpa", check=False)
    with pytest.raises(UnsupportedModel, match="eager"):
        pb.inspect(sdpa, SENTENCES[0], attention=True)
    config = MambaConfig(vocab_size=261, hidden_size=16, num_hidden_layers=2, state_size=4)
    mamba = pb.LanguageModel.from_modules(MambaForCausalLM(config).eval(), byte_tokenizer(), name="mamba", check=False)
    with pytest.raises(UnsupportedModel, match="mamba"):
        pb.inspect(mamba, SENTENCES[0], attention=True)
    headless = build("gpt2").transformer
    headless.set_attn_implementation("eager")
    base = pb.LanguageModel.from_modules(headless, byte_tokenizer(), check=False)
    with pytest.raises(UnsupportedModel, match="no output"):
        pb.inspect(base, SENTENCES[0], check=True)
    assert pb.inspect(base, "the cat", attention=True).heads is not None
    with pytest.raises(CorpusError):
        pb.inspect(model, [])
    with pytest.raises(BadParameter, match="no tokens"):
        pb.inspect(model, "")
    with pytest.raises(UnknownSite):
        pb.inspect(model, SENTENCES, sites="resid.9")
    with pytest.raises(BadParameter):
        pb.inspect(model, SENTENCES, check=True, draws=0)
    with pytest.raises(BadParameter, match="chat template"):
        pb.inspect(language_model("gpt2"), SENTENCES, chat_template=True)


def test_an_encoder_is_read_with_all_its_keys() -> None:
    bert = build("bert")
    bert.set_attn_implementation("eager")
    found = pb.inspect(pb.LanguageModel.from_modules(bert, wordpiece_tokenizer()), "the cat ing", attention=True)
    uniform = found.grid("entropy", "uniform")
    assert uniform == pytest.approx(np.full(uniform.shape, np.log2(len(found.texts[0].tokens))))


@pytest.mark.parametrize("family", ["gpt_neox", "mistral", "qwen2", "gemma2", "opt", "roberta", "distilbert"])
def test_families_give_patterns_that_weight_their_values(family: str) -> None:
    """`find_attention` refuses a family whose patterns times values are not what its heads write."""
    network = build(family)
    network.set_attn_implementation("eager")
    tokenizer: Any = byte_tokenizer()
    found = pb.inspect(pb.LanguageModel.from_modules(network, tokenizer), "the ing the", attention=True)
    assert found.heads is not None and found.grid("entropy").shape == (2, 2)


def test_a_chat_template_is_part_of_what_is_read() -> None:
    model = pb.LanguageModel.from_modules(build("gpt2"), byte_tokenizer())
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    found = pb.inspect(model, "the cat", chat_template=True)
    assert "".join(found.texts[0].tokens) == "[the cat]"
    assert found.tokens[found.tokens["site"] == "resid.0"]["is_special"].tolist()[:2] == [True, False]
    with pytest.raises(AlignmentError):
        pb.inspect(model, pb.Corpus((pb.Example("a", "cat", messages=(("user", "no"),)),)), chat_template=True)


def test_files_resume_and_equal_what_is_returned(tmp_path: Path) -> None:
    model = planted_model()
    first = pb.inspect(model, [TEXT, "start b d a b d a"], check=True, to=tmp_path, progress=False)
    units = sorted((tmp_path / "units").glob("*.json"))
    assert len(units) == 2 * 2  # batches of equal length by layers
    units[0].unlink()
    again = pb.inspect(model, [TEXT, "start b d a b d a"], check=True, to=tmp_path, progress=False)
    assert first.checks is not None and again.checks is not None
    pd.testing.assert_frame_equal(first.checks, again.checks)
    for name, table in again.tables().items():
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), table, check_dtype=False)
    read = json.loads((tmp_path / "inspection.json").read_text())
    assert {"hidden_state_norms", "attention_summary", "cannot_show", "notes", "against"} <= set(read)
    head = read["attention_summary"][0]
    assert {"layer", "head", "scores", "check", "last_token"} == set(head)
    assert head["last_token"][0]["top"]["key"] == len(TEXT.split()) - 2
    sample = pb.inspect(model, [TEXT] * 3 + ["start a b"] * 2, max_texts=2, seed=3)
    assert len(sample.texts) == 2 and sample.count == 5 and any("chosen at random" in note for note in sample.notes)


def test_the_page_shows_maps_beside_effects(tmp_path: Path) -> None:
    found = pb.inspect(planted_model(), [TEXT, "start b d a b d a"], check=True, progress=False)
    page = write_page(found, tmp_path, heads=[(1, 0)]).read_text(encoding="utf-8")
    assert "Head 1.0, KL of the output: pattern made uniform" in page and "Head 0.1, KL" not in page
    assert page.count("A pattern whose replacement changes nothing explains nothing here.") == 2
    short = page[page.index("In short") : page.index("Hidden states")]
    assert "changes the output most for 1.0" in short and "explains nothing here" in short
    assert re.search(r"http-equiv=\"Content-Security-Policy\"", page) and "<svg" in page
    with pytest.raises(BadParameter, match=r"no head 7\.0"):
        write_page(found, tmp_path, heads=[(7, 0)])


def test_command(tmp_path: Path) -> None:
    run = ["inspect", "--model", MODEL, "--text", SENTENCES[0], "--attention", "--to", str(tmp_path), "--quiet"]
    done = CliRunner().invoke(app, run, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "No head was checked" in done.output and "interval" in done.output
    assert (tmp_path / "inspection.html").is_file() and (tmp_path / "inspection.json").is_file()
    for more, word in (
        (["--corpus", "probing:reference"], "texts come from one place"),
        (["--span", "subject=the"], "names one substring"),
        (["--head", "three"], "names no head"),
    ):
        bad = CliRunner().invoke(app, [*run, *more])
        assert bad.exit_code != 0 and word in (bad.output + str(bad.exception)), more
    with pytest.raises(ConfigError):
        InspectJob(model=MODEL, texts=["a"], subset="0", to=str(tmp_path)).run(progress=False)


def test_a_study_looks_inside_its_model_on_its_corpus(tmp_path: Path, small_corpus: dict[str, Path]) -> None:
    values: dict[str, Any] = {
        "name": "look",
        "model": MODEL,
        "corpus": {split: str(file) for split, file in small_corpus.items()},
        "extract": {"rows": "sentence:mean", "sites": "resid.1"},
        "train": {"task": "column:tense", "probes": ["prior"]},
    }
    plain, looking = (pb.Study.read(values | more, "here") for more in ({}, {"inspect": {"subset": "0:3"}}))
    assert b'"inspect":' not in plain.recipe() and b'"inspect":' in looking.recipe()
    assert looking.inspect is not None
    (only,) = looking.all_models()
    looking.inspect.inspect(only, pb.Corpus.read(small_corpus), tmp_path / "inspection", progress=False)
    assert len(json.loads((tmp_path / "inspection" / "inspection.json").read_text())["texts"]) == 3


@pytest.mark.parametrize("sites", ["resid.0,resid.3", "resid.1,resid.3", "resid.*", "resid.2"])
def test_a_row_is_compared_with_the_row_before_it(model: pb.LanguageModel, sites: str) -> None:
    """What attention and MLP add is all that lies between two rows: their sum is the difference of the states."""
    found, encoded = pb.inspect(model, SENTENCES[0], sites=sites).tokens, model.encode(SENTENCES[:1])
    asked = list(dict.fromkeys(found["site"]))
    rows = {site: found[found["site"] == site].reset_index() for site in asked}
    cosine = torch.nn.functional.cosine_similarity
    for before, site in pairwise(asked):
        between = range(int(before[-1]), int(site[-1]))
        names = [f"{part}.{layer}" for part in ("attn_out", "mlp_out") for layer in between]
        states = model.states(encoded, [before, site, *names])
        attention, mlp = (sum(states[f"{part}.{k}"][0] for k in between) for part in ("attn_out", "mlp_out"))
        assert torch.allclose(states[before][0] + attention + mlp, states[site][0], atol=1e-3)
        for part, added in (("attention", attention), ("mlp", mlp)):
            assert rows[site][f"{part}_norm"].to_numpy() == pytest.approx(added.norm(dim=1).numpy(), rel=1e-4)
            expected = cosine(added, states[before][0], dim=1).numpy()
            assert rows[site][f"{part}_cosine"].to_numpy() == pytest.approx(expected, abs=1e-4)
        expected = cosine(states[site][0], states[before][0], dim=1).numpy()
        assert rows[site]["cosine_to_previous"].to_numpy() == pytest.approx(expected, abs=1e-4)
    first = rows[asked[0]]
    assert all(first.get(name, pd.Series([np.nan])).isna().all() for name in ("cosine_to_previous", "mlp_norm"))


def test_sites_beside_leave_out_what_is_not_available() -> None:
    known = ["resid.0", "resid.1", "resid.2", "attn_out.0", "attn_out.1", "mlp_out.1"]
    assert sites_beside("resid.2", ["resid.0", "resid.2"], known) == {
        "previous": ("resid.0",),
        "attention": ("attn_out.0", "attn_out.1"),
    }
    assert sites_beside("resid.2", ["resid.2", "mlp_out.0"], known) == {}


def test_files_of_an_earlier_run_do_not_stay(tmp_path: Path, model: pb.LanguageModel) -> None:
    pb.inspect(model, SENTENCES[0], check=True, against=SENTENCES[0], to=tmp_path, progress=False)
    (tmp_path / "inspection.html").write_text("old")
    (tmp_path / "inspection-mine.parquet").write_text("mine")
    found = pb.inspect(model, SENTENCES[1], to=tmp_path)
    left = {path.name for path in tmp_path.glob("inspection*")}
    assert left == {path.name for path in found.paths(tmp_path)} | {"inspection-mine.parquet"}


def test_texts_of_one_token_have_no_medians_beside_token_0(model: pb.LanguageModel) -> None:
    found = pb.inspect(model, ["the", "doctor"]).sites
    assert (
        found[[name for name in found if name.startswith("norm_") and name != "norm_first_token"]]
        .isna()
        .to_numpy()
        .all()
    )
    assert found.filter(like="_median").isna().to_numpy().all() and found["largest_coordinate"].isna().all()
    assert found["norm_first_token"].notna().all() and (found["tokens"] == 0).all()


def test_self_similarity_counts_every_vocabulary_entry_once() -> None:
    axes = np.eye(3)[[0, 0, 0, 0, 1, 2]]  # entry 7 in four texts, always alike; entry 8 in two, at a right angle
    found = geometry_of(axes, np.array([0, 1, 2, 3, 0, 1]), np.array([7, 7, 7, 7, 8, 8]))
    assert found["self_similarity"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("texts", [None, 5, [5], ["a", None], b"a b", {"a": 1}])
def test_what_is_no_text_is_refused(model: pb.LanguageModel, texts: Any) -> None:
    with pytest.raises(CorpusError, match="no texts"):
        pb.inspect(model, texts)


def test_options_that_cannot_be_used_are_refused_by_type(model: pb.LanguageModel) -> None:
    for options in ({"sites": []}, {"draws": 2.5}, {"max_texts": 1.5}, {"replacements": ["uniform"]}):
        with pytest.raises(BadParameter):
            pb.inspect(model, SENTENCES[0], **options)  # type: ignore[arg-type]
    with pytest.raises(BadParameter, match="against"):
        pb.inspect(model, SENTENCES[0], against="")
    found = pb.inspect(model, SENTENCES[0], check=True, replacements="uniform", progress=False)
    assert found.replacements == ("uniform",)
    for score, column in (("foo", "value"), ("self", "foo"), ("self", "kl"), ("permuted", "kl"), ("uniform", "kl_foo")):
        with pytest.raises(UnknownName):
            found.grid(score, column)
    states = pb.inspect(model, SENTENCES[0])
    for column in ("value", "kl"):
        with pytest.raises(BadParameter, match="inspection has no"):
            states.grid("self", column)


def test_options_of_attention_are_refused_before_work(tmp_path: Path) -> None:
    job: dict[str, Any] = {"model": MODEL, "texts": SENTENCES[:1], "to": str(tmp_path / "new")}
    for options in (
        {"heads": ["0.0"]},
        {"replacements": ["uniform"]},
        {"replacements": ["uniform"], "attention": True},
    ):
        with pytest.raises(ConfigError, match="--check"):
            InspectJob(**job, **options).run(progress=False)
    for head in ("9.0", "0.99"):
        with pytest.raises(BadParameter, match="no head"):
            InspectJob(**job, attention=True, heads=[head]).run(progress=False)
    assert not (tmp_path / "new").exists()
