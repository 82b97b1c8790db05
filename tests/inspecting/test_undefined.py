"""Laws of what is not there: sinks outside the text, replacements of nothing, ties, noise; and how it is printed."""

from __future__ import annotations

import html
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from transformers import GptOssConfig, GptOssForCausalLM

import probing as pb
from probing.inspecting.attention import SCORES, pattern_differences, scores_of
from probing.inspecting.checking import disagreement
from probing.inspecting.prompts import prompts_of
from probing.reporting.inspection_page import NO_HEAD_STANDS_OUT, write_page
from probing.reporting.inspection_tables import (
    NOTHING_BESIDE_FIRST,
    agreement,
    largest_effects,
    print_inspection,
    standing_out,
)
from probing.results.inspection import ONE_TEXT, SINK, Inspection
from tests.samples.planted_heads import TEXT, planted_model
from tests.samples.tiny_models import build, byte_tokenizer

WAYS = ("uniform", "position_mean", "permuted", "mean_output")


def sink_model(sink: float) -> pb.LanguageModel:
    """Return a model of two layers whose heads give every token the score 0, and the sink the score `sink`."""
    config = GptOssConfig(
        vocab_size=261,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=128,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: Any = GptOssForCausalLM(config).eval()
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(sink)
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.q_proj.bias.zero_()
            layer.self_attn.v_proj.weight.mul_(20)
    return pb.LanguageModel.from_modules(model, byte_tokenizer(), name="sink", check=False)


def flat_model() -> pb.LanguageModel:
    """Return a model whose heads all attend evenly."""
    model: Any = build("gpt2")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, : 2 * model.config.n_embd] = 0
            block.attn.c_attn.bias[: 2 * model.config.n_embd] = 0
    return pb.LanguageModel.from_modules(model, byte_tokenizer(), name="flat", check=False)


def printed(found: Inspection, width: int = 80) -> str:
    console = Console(width=width, record=True, file=StringIO())
    print_inspection(found, console, details=True)
    return console.export_text()


@pytest.mark.parametrize("sink", [-1.0, 2.0, 8.0])
def test_the_mass_on_a_sink_is_what_tokens_lack(sink: float) -> None:
    """Of n tokens of score 0 beside a sink of score s, each has 1 / (n + eˢ), and the sink eˢ / (n + eˢ)."""
    found = pb.inspect(sink_model(sink), "the cat", attention=True)
    counts = np.arange(2, len(found.texts[0].tokens) + 1)
    each, rest = 1 / (counts + np.exp(sink)), np.exp(sink) / (counts + np.exp(sink))
    assert found.grid("sink_mass") == pytest.approx(np.full((2, 2), rest.mean()), abs=1e-5)
    assert found.grid("first_token") == pytest.approx(np.full((2, 2), each.mean()), abs=1e-5)
    entropy = -counts * each * np.log2(each) - rest * np.log2(rest)
    assert found.grid("entropy") == pytest.approx(np.full((2, 2), entropy.mean()), abs=1e-4)
    assert found.grid("entropy_share") == pytest.approx(
        np.full((2, 2), (entropy / np.log2(counts + 1)).mean()), abs=1e-4
    )
    assert SINK in found.notes and found.grid("sink_mass", "uniform").max() == 0
    if sink == 8:  # a head that rests on the sink is no uniform reader
        assert found.grid("entropy_share").max() < 0.2 and found.grid("first_token").max() < 1e-3


def test_models_without_a_sink_have_no_mass_there() -> None:
    found = pb.inspect(planted_model(), TEXT, attention=True)
    assert found.grid("sink_mass").max() == 0 and SINK not in found.notes


def test_a_sink_counts_as_a_key_when_patterns_are_compared() -> None:
    one, other = np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2))
    other[0, 0, 1, 0] = 1.0  # moved from the sink to token 0
    assert pattern_differences(one, other, [0])[0]["largest_variation"] == 1
    prompt = prompts_of(planted_model(), "start a")[0][0]
    values, _ = scores_of(one[0], np.tril(np.ones((2, 2), dtype=bool)), prompt, has_sink=True)
    named = dict(zip(SCORES, values[0], strict=True))
    assert named["sink_mass"] == 1 and named["entropy"] == 0 and named["self"] == 0


@pytest.mark.parametrize(
    ("texts", "undefined"),
    [
        (["a"], {"uniform", "permuted", "mean_output"}),
        (["a", "b", "c"], {"uniform", "permuted", "position_mean"}),
        (["start a", "start b"], {"permuted"}),
        (["start a b", "start a b"], set()),
        (["start a b", "start b a"], set()),
    ],
)
def test_what_replaces_nothing_has_no_effect_that_is_defined(
    texts: list[str], undefined: set[str], tmp_path: Path
) -> None:
    found = pb.inspect(planted_model(), texts, check=True, progress=False)
    checks = found.checks
    assert checks is not None
    assert set(checks[checks["kl"].isna()]["replacement"]) == undefined
    assert (
        checks["kl"].isna().equals(checks["kl_last"].isna()) and ((checks["texts"] == 0) == checks["kl"].isna()).all()
    )
    for way in undefined:
        assert any(note.startswith(f"Replacement {way}: ") for note in found.notes) and not found.disagreement[way]
    page, text = write_page(found, tmp_path).read_text(), printed(found)
    if undefined == set(found.replacements):
        assert "Whichever way" not in page and "No effect is defined" in text
    assert "nan" not in text.lower().replace("nanmedian", "")


def test_equal_texts_and_one_group_have_no_interval_and_say_so() -> None:
    model = planted_model()
    equal = pb.inspect(model, [TEXT] * 3, check=True, progress=False)
    assert any("no interval" in note for note in equal.notes) and "position_mean" not in equal.replacements
    examples = tuple(pb.Example(str(k), text, document="one") for k, text in enumerate(["start a b", "start b c"]))
    grouped = pb.inspect(model, pb.Corpus(examples), attention=True)
    assert any("no interval" in note for note in grouped.notes) and grouped.heads is not None
    assert grouped.heads["low"].isna().all()
    assert ONE_TEXT in pb.inspect(model, TEXT).notes
    assert not any("no interval" in note for note in pb.inspect(model, [TEXT, "start b d a"]).notes)


def test_equal_heads_stand_out_in_nothing_and_noise_is_in_no_order(tmp_path: Path) -> None:
    found = pb.inspect(flat_model(), ["the cat", "then the cat"], check=True, progress=False)
    assert standing_out(found) == [] and found.disagreement["uniform"] == {}
    assert all(of.get("any", {"striking": 0})["striking"] == 0 for of in found.disagreement.values())
    only = pb.inspect(flat_model(), ["the cat", "then"], check=True, replacements="uniform", progress=False)
    assert largest_effects(only, 8) == [] and "more than rounding" in agreement(only)[1]
    text = printed(only)
    assert "heads that move the output most" not in text and "more than rounding" in text
    assert "Whichever way" not in write_page(only, tmp_path).read_text()


def test_a_text_of_one_token_says_why_there_is_nothing(tmp_path: Path) -> None:
    for text, is_single in (("start", True), (TEXT, False)):
        found = pb.inspect(planted_model(), text, attention=True)
        page = html.unescape(write_page(found, tmp_path).read_text())
        for words in (NOTHING_BESIDE_FIRST, NO_HEAD_STANDS_OUT):
            assert (words in page) == is_single
        assert (NOTHING_BESIDE_FIRST[:40] in printed(found)) == is_single
        assert "–––" not in page + printed(found)


@pytest.mark.parametrize(("below", "is_chance"), [(0, False), (6, True), (12, False)])
def test_what_chance_gives_is_called_so(below: int, is_chance: bool) -> None:
    """Of 24 heads 12 are striking, of which none, half or all are below the median."""
    found = pb.inspect(planted_model(), TEXT, check=True, replacements="uniform", progress=False)
    heads = pd.DataFrame({"layer": np.repeat([0, 1], 12), "head": np.tile(np.arange(12), 2), "replacement": "uniform"})
    heads["kl"] = np.arange(1.0, 25.0)
    counts = {"uniform": {"any": {"striking": 12, "below_median": below}}}
    said = " ".join(agreement(replace(found, checks=heads, layers=(0, 1), disagreement=counts)))
    assert f"{below} of 12" in said and ("what chance gives" in said) == is_chance and "Striking are" not in said
    counts = {"uniform": {"any": {"striking": 18, "below_median": below}}}
    many = " ".join(agreement(replace(found, checks=heads, layers=(0, 1), disagreement=counts)))
    assert "Striking are 18 of 24 heads" in many


def test_the_mean_effect_of_a_head_is_set_beside_that_at_the_last_token(tmp_path: Path) -> None:
    page = write_page(pb.inspect(planted_model(), TEXT, check=True, progress=False), tmp_path).read_text()
    assert page.count("Whichever way") == page.count("bits in the mean over tokens, ") > 0
    assert page.count("the last does by at least") >= page.count("Whichever way")


def test_striking_is_above_the_bulk() -> None:
    effect = np.array([[0.0, 1.0, 2.0, 3.0, 4.0]])
    tie = np.array([[0.0, 0.0, 0.0, 0.0, 1.0]])
    assert disagreement({"a": np.ones((1, 5))}, effect)["a"]["striking"] == 0
    assert disagreement({"a": 1 - tie}, effect)["a"]["striking"] == 0  # all but the last are equal: they are the bulk
    assert disagreement({"a": tie}, effect)["a"] == {"striking": 1, "below_median": 0}
    assert disagreement({"a": tie}, effect * 1e-9, rounding=1e-5) == {}
    assert disagreement({"a": tie}, np.full((1, 5), np.nan)) == {}
    effect[0, 4] = np.nan
    assert disagreement({"a": tie}, effect)["a"]["striking"] == 0


@pytest.mark.parametrize("width", [60, 80, 200])
def test_names_do_not_break_and_left_out_columns_are_named(width: int) -> None:
    import dataclasses

    found = pb.inspect(planted_model(), TEXT, check=True, against=TEXT, progress=False)
    sites = found.sites.assign(site=[f"resid.{k + 100}" for k in range(len(found.sites))], norm_median=123456.0)
    text = printed(dataclasses.replace(found, sites=sites), width)
    assert all(f"resid.{k + 100} " in text for k in range(len(sites)))
    assert ("left out for want of room" in text) == (width < 200)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "compared with" in text and "total variation" in text  # the comparison is printed


def test_words_count_and_what_was_not_checked_is_not_spoken_of(tmp_path: Path) -> None:
    found = pb.inspect(planted_model(), TEXT, sites="resid.1", attention=True)
    assert repr(found).startswith("Inspection of 1 text in") and ": 1 site, 2 layers of attention" in repr(found)
    page, text = write_page(found, tmp_path).read_text(), printed(found)
    assert "KL of" not in page and "KL is" not in page and "what the output loses" not in text
    assert "of entropy share the smallest" in text


def test_what_scores_count_is_on_the_page_and_comparisons_are_of_the_sites_asked_for(tmp_path: Path) -> None:
    found = pb.inspect(planted_model(), TEXT, sites="resid.0,resid.2", attention=True, against=TEXT)
    page = write_page(found, tmp_path).read_text()
    assert "What each score counts" in page and "earlier ones only" in page and "is in bits" in page
    assert found.comparison is not None and set(found.comparison.states["site"]) == {"resid.0", "resid.2"}
