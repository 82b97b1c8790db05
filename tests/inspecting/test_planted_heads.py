"""Planted truths of attention: known heads score 1 or as uniform attention; a check tells read patterns apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probing.inspecting import inspect
from probing.inspecting.attention import SCORES, scores_of, uniform
from probing.inspecting.checking import NOTHING, HeadCheck, HeadMeans, disagreement
from probing.inspecting.prompts import batches, prompts_of
from probing.inspecting.reading import Reader
from probing.models.language_model import LanguageModel
from probing.results.inspection import CHECK_LIMITS, REPLACEMENTS, Inspection
from tests.samples.planted_heads import HEADS, TEXT, planted_model
from tests.samples.tiny_models import build, byte_tokenizer, wordpiece_tokenizer

TEXTS = [TEXT, "start b d a b d a", "start e f e f e", "start c a d c a d c"]


@pytest.fixture(scope="module")
def planted() -> Inspection:
    return inspect(planted_model(), TEXTS, check=True, progress=False)


def score(found: Inspection, head: str, name: str, column: str = "value") -> float:
    layer, number = HEADS[head]
    return float(found.grid(name, column)[layer, number])


def test_planted_heads_score_one(planted: Inspection) -> None:
    assert score(planted, "previous", "previous_token") == pytest.approx(1, abs=1e-6)
    assert score(planted, "induction", "induction") == pytest.approx(1, abs=1e-6)
    assert score(planted, "previous", "entropy") == pytest.approx(0, abs=1e-5)
    assert score(planted, "previous", "distance") == pytest.approx(1, abs=1e-5)
    assert score(planted, "induction", "induction", "uniform") < 0.3


def test_idle_heads_score_what_uniform_attention_scores(planted: Inspection) -> None:
    for name in SCORES:
        if np.isfinite(planted.grid(name)).any():
            assert score(planted, "idle", name) == pytest.approx(score(planted, "idle", name, "uniform"), abs=1e-6), (
                name
            )
    assert score(planted, "idle", "entropy_share") == pytest.approx(1, abs=1e-6)


def test_the_check_tells_a_pattern_that_is_read_from_one_that_is_not(planted: Inspection) -> None:
    for way in ("uniform", "position_mean", "permuted"):
        effect = planted.grid(way, "kl")
        assert effect[HEADS["induction"]] > 0.05, way
        assert effect[HEADS["constant"]] < 1e-9, way
    # Both have the pattern of a previous-token head; only the first one's is read, by the induction head.
    assert score(planted, "constant", "previous_token") == pytest.approx(1, abs=1e-6)
    assert planted.grid("uniform", "kl")[HEADS["previous"]] > 0.05
    assert planted.grid("mean_output", "kl")[HEADS["idle"]] == pytest.approx(0, abs=1e-9)


def test_a_copied_position_is_what_the_mean_pattern_by_position_keeps() -> None:
    """In texts that repeat at the same distance, the induction head's pattern is one of positions alone."""
    found = inspect(planted_model(), ["start a b a b a", "start c d c d c"], check=True, progress=False)
    assert (
        found.grid("position_mean", "kl")[HEADS["induction"]] < 1e-6 < found.grid("uniform", "kl")[HEADS["induction"]]
    )


def test_value_weighted_shares_count_what_is_written() -> None:
    """A head that attends evenly and writes nothing has no shares; one that copies words weighs equal words equally."""
    found = inspect(planted_model(), TEXT, attention=True, progress=False)
    _, weighted = found.patterns[0]
    layer, head = HEADS["previous"]
    assert weighted[layer, head, 1:].sum(-1) == pytest.approx(1, abs=1e-6)
    assert not weighted[HEADS["idle"]].any()
    with torch.inference_mode():
        assert np.isfinite(weighted).all()


def reader_of(family: str) -> Reader:
    model: Any = build(family)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape)
    model.set_attn_implementation("eager")
    tokenizer = wordpiece_tokenizer() if family == "bert" else byte_tokenizer()
    reader = Reader(LanguageModel.from_modules(model, tokenizer, name=family), ("resid.1",))
    reader.find_attention()
    reader.check_running()
    return reader


WORDS = ["the cat ing", "a b c the", "then the ing cat", "cat", "the cat ate the cat"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_pattern_replaced_by_itself_changes_nothing_and_batches_equal_single_texts(family: str) -> None:
    reader, means = reader_of(family), HeadMeans()
    prompts, _ = prompts_of(reader.model, WORDS)
    for batch in batches(prompts):
        means.add(reader.read(batch))
    assert HeadCheck(reader, means, (NOTHING,)).run(prompts).max() < 1e-5
    check = HeadCheck(reader, means, tuple(REPLACEMENTS), draws=2)
    together, alone = check.run(prompts), check.run(prompts, tokens=1)
    assert together == pytest.approx(alone, abs=1e-5)
    assert together.shape == (len(WORDS), 4, 2, 2, 2) and together[..., 0].mean() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_replaced_head_is_what_a_full_pass_with_that_head_gives(family: str) -> None:
    """Compared with a pass of the whole model whose projection is given the replaced output of one head."""
    reader = reader_of(family)
    prompts, _ = prompts_of(reader.model, ["the cat ate the cat"])
    read, means = reader.read(prompts, ["resid.0", "resid.1"]), HeadMeans()
    means.add(read)
    found = HeadCheck(reader, means, ("uniform",)).run(prompts)[0, 0]
    trunk = reader.trunk
    for layer in reader.layers:
        for head in range(reader.n_heads):
            allowed = torch.from_numpy(read.allowed(layer, None)).float()
            flat = allowed / allowed.sum(1, keepdim=True)
            columns = slice(head * reader.size, (head + 1) * reader.size)
            replaced = flat @ read.values[layer][0, :, head]

            def put(module: Any, args: Any, columns: Any = columns, replaced: Any = replaced) -> Any:
                edited = args[0].clone()
                edited[0, :, columns] = replaced
                return (edited,)

            module = trunk.trunk.get_submodule(trunk.modules[f"heads.{layer}"])
            handle = module.register_forward_pre_hook(put)
            logits = reader.model.logits([prompts[0].encoded])[0].double()
            handle.remove()
            assert read.logits is not None
            clean = read.logits[0].double().log_softmax(-1)
            bits = (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1) / np.log(2)
            assert found[reader.layers.index(layer), head, 0] == pytest.approx(float(bits.mean()), rel=1e-3, abs=1e-6)


def test_permutation_keeps_token_0_and_the_weights() -> None:
    reader = reader_of("llama")
    prompts, _ = prompts_of(reader.model, ["the cat ate the cat"])
    read, means = reader.read(prompts), HeadMeans()
    means.add(read)
    check = HeadCheck(reader, means, ("permuted",))
    pattern, permuted = read.patterns[0], check._permuted(read, 0, read.allowed(0, None), 0)
    assert torch.equal(pattern[..., 0], permuted[..., 0]) and not torch.equal(pattern, permuted)
    assert torch.equal(pattern.sort(-1).values, permuted.sort(-1).values)
    assert not (permuted * (pattern == 0)).any()


def test_scores_of_a_pattern_by_hand() -> None:
    model = planted_model()
    prompt = prompts_of(model, "start a b a b")[0][0]
    allowed = np.tril(np.ones((5, 5), dtype=bool))
    pattern = np.zeros((1, 5, 5))
    pattern[0, range(5), [0, 0, 0, 2, 1]] = 1
    values, queries = scores_of(pattern, allowed, prompt)
    found = dict(zip(SCORES, values[0], strict=True))
    assert found["first_token"] == pytest.approx(2 / 4) and found["distance"] == pytest.approx((1 + 2 + 1 + 3) / 4)
    assert found["induction"] == pytest.approx(
        1 / 2
    )  # the second a looks at the b after the first; the second b does not
    assert np.isnan(found["punctuation"]) and dict(zip(SCORES, queries, strict=True))["induction"] == 2
    even = dict(zip(SCORES, scores_of(uniform(allowed)[None], allowed, prompt)[0][0], strict=True))
    assert even["entropy"] == pytest.approx(np.log2([2, 3, 4, 5]).mean()) and even["entropy_share"] == pytest.approx(1)


def test_the_page_and_the_json_say_what_cannot_be_shown(planted: Inspection) -> None:
    assert set(CHECK_LIMITS) < set(planted.limits)
    assert tuple(planted.disagreement) == planted.replacements == tuple(REPLACEMENTS)
    counts = [of["any"] for of in planted.disagreement.values()]
    assert all(0 <= of["below_median"] <= of["striking"] <= 6 for of in counts)


def test_disagreement_counts_striking_heads_without_effect() -> None:
    score, effect = np.arange(20.0).reshape(4, 5), np.ones((4, 5))
    effect[3, 3:] = [0.0, 2.0]  # the two heads of the top decile: one without effect
    assert disagreement({"a": score}, effect)["a"] == {"striking": 2, "below_median": 1}
    assert disagreement({"a": np.full((4, 5), np.nan)}, effect) == {}
