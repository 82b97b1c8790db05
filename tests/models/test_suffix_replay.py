"""Laws of running a model from the middle: the outputs of the full pass, without the blocks below, padding or not."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from probing.errors import EditFailed, ReplayUnavailable, UnknownSite, UnsupportedModel
from probing.models.batching import PaddedBatch
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from tests.conftest import REFERENCE
from tests.samples.tiny_models import _config, _noisy, build, byte_tokenizer, corpus_of, wordpiece_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["the thing", "a", "the cat is being in the hat", "on it"]
CAUSAL = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "gemma", "gemma2", "opt")
MASKED = ("bert", "roberta", "distilbert", "modernbert", "deberta-v2")
SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


@cache
def read(family: str, side: str = "right", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model with a head and weights of a size that shows every path."""
    if family == "reference":
        return LanguageModel.load(str(REFERENCE / "model"), padding_side=side)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if family in ("gpt2", "llama", "bert"):
            network = _noisy(build(family))
        else:
            loader: Any = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
            config = _config(family, SIZE) if family in (*MASKED, *CAUSAL) else AutoConfig.for_model(family)
            network = _noisy(loader.from_config(config).eval())
    tokenizer = wordpiece_tokenizer() if family == "bert" else byte_tokenizer()
    return LanguageModel.from_modules(network.to(dtype).eval(), tokenizer, name=family, padding_side=side)


def test_a_model_that_draws_at_random_is_told_apart_from_one_that_cannot_be_replayed() -> None:
    model = LanguageModel.from_modules(build("gpt2"), byte_tokenizer())
    block = model._trunk.blocks[1]
    honest = block.forward
    block.forward = lambda states, *a, **k: honest(states, *a, **k) + torch.rand(states.shape)
    with pytest.raises(EditFailed, match="other outputs each time"):
        model.suffix.prove("resid.1")


def batch_of(model: LanguageModel) -> PaddedBatch:
    texts = ["the painter sees", "a", "the old doctor was in the garden"] if "model" in model.name else TEXTS
    return model.padded(model.encode(texts))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", [*CAUSAL, *MASKED, "reference"])
def test_logits_from_every_layer_are_those_of_the_full_pass_to_the_bit(family: str, side: str) -> None:
    model = read(family, side)
    inputs, layers = batch_of(model), len(model._trunk.blocks)
    assert (inputs.mask == 0).any() and model.suffix.head == ("masked" if family in MASKED else "causal")
    states, full = model.suffix.read(inputs, [f"resid.{layer}" for layer in range(layers + 1)])
    assert full is not None
    real = inputs.mask.bool()
    for layer in range(layers + 1):
        found = model.run_from(f"resid.{layer}", states[f"resid.{layer}"], inputs)
        torch.testing.assert_close(found[real], full[real], atol=0, rtol=0, msg=f"{family} {side} {layer}")
        empty = torch.where(real[..., None], states[f"resid.{layer}"], 0.0)
        assert family == "deberta-v2" or not torch.equal(
            empty, states[f"resid.{layer}"]
        )  # which fills it with 0 itself
        found = model.run_from(f"resid.{layer}", empty, inputs)
        torch.testing.assert_close(found[real], full[real], atol=0, rtol=0, msg=f"{family} {side} {layer}, padding 0")


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "bert"])
def test_in_half_precision_too(family: str) -> None:
    model = read(family, "right", torch.bfloat16)
    inputs = batch_of(model)
    states, full = model.suffix.read(inputs, ["resid.1"])
    found = model.run_from("resid.1", states["resid.1"], inputs)
    assert full is not None and found.dtype == torch.bfloat16
    real = inputs.mask.bool()
    torch.testing.assert_close(found[real], full[real], atol=0, rtol=0)


@pytest.mark.parametrize("family", [*CAUSAL, *MASKED, "reference"])
def test_blocks_below_the_site_do_not_run_and_those_above_do(family: str) -> None:
    model = read(family)
    inputs, blocks = batch_of(model), model._trunk.blocks
    states, _ = model.suffix.read(inputs, model.sites)
    for layer in range(len(blocks) + 1):
        site, ran = f"resid.{layer}", set[int]()
        model.run_from(site, states[site], inputs)  # the first use compares with a full pass, which runs them all
        handles = [
            inner.register_forward_hook(lambda *_, k=k, ran=ran: ran.add(k))
            for k, block in enumerate(blocks)
            for inner in block.modules()
            if inner is not block
        ]
        assert len(handles) > len(blocks)
        model.run_from(site, states[site], inputs)
        for handle in handles:
            handle.remove()
        assert ran == set(range(layer, len(blocks))), site


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_other_states_give_the_logits_of_the_model_with_those_states(family: str) -> None:
    """The edited run equals a full pass with a hook that makes the same edit."""
    model = read(family)
    inputs = batch_of(model)
    states, clean = model.suffix.read(inputs, ["resid.1"])
    edited = states["resid.1"] + 0.3 * torch.randn(states["resid.1"].shape, generator=torch.Generator().manual_seed(1))
    found = model.run_from("resid.1", edited, inputs)
    handle = model._trunk.blocks[1].register_forward_pre_hook(
        lambda module, args, kwargs: ((edited, *args[1:]), kwargs), with_kwargs=True
    )
    _, expected = model.suffix.read(inputs, [])
    handle.remove()
    assert clean is not None and expected is not None
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert not torch.allclose(found, clean, atol=1e-2)


def test_nothing_is_left_behind_and_other_peoples_hooks_stay() -> None:
    model = read("llama")
    inputs, block, seen = batch_of(model), model._trunk.blocks[0], list[int]()
    states, full = model.suffix.read(inputs, ["resid.1"])
    block.__dict__["forward"] = type(block).forward.__get__(block)
    handle = block.register_forward_hook(lambda *_: seen.append(1))
    own = block.__dict__["forward"]
    model.run_from("resid.1", states["resid.1"], inputs)
    assert block.__dict__.pop("forward") is own and seen and len(block._forward_hooks) == 1
    handle.remove()
    with pytest.raises(RuntimeError):
        model.run_from("resid.1", states["resid.1"][..., :3].clone(), inputs)
    for one in model._trunk.blocks:
        assert "forward" not in one.__dict__ and not one._forward_pre_hooks and not one._forward_hooks
    assert full is not None and torch.equal(model.suffix.read(inputs, [])[1], full)


def test_gradients_flow_into_the_given_states_as_through_the_whole_model() -> None:
    model = read("gpt2")
    inputs = batch_of(model)
    states = model.suffix.read(inputs, ["resid.1"])[0]["resid.1"].clone().requires_grad_()
    (found,) = torch.autograd.grad(model.run_from("resid.1", states, inputs)[:, -1, 7].sum(), states)
    step = 1e-2 * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        up, down = (model.run_from("resid.1", (states + s * step).detach(), inputs)[:, -1, 7].sum() for s in (1, -1))
    torch.testing.assert_close((up - down) / 2, (found * step).sum(), rtol=2e-2, atol=1e-4)
    assert not model.run_from("resid.1", states.detach(), inputs).requires_grad


def test_sites_states_and_models_that_cannot_be_replayed_are_refused() -> None:
    model = read("gpt2")
    inputs = batch_of(model)
    states = model.suffix.read(inputs, ["resid.1"])[0]["resid.1"]
    with pytest.raises(ReplayUnavailable, match=r"resid\.l"):
        model.run_from("mlp_out.0", states, inputs)
    with pytest.raises(UnknownSite, match=r"did you mean 'resid\.1'"):
        model.run_from("resid.11", states, inputs)
    for other in (states[:2], states.double()):
        with pytest.raises(ReplayUnavailable, match="no states of this batch"):
            model.run_from("resid.1", other, inputs)
    bare = LanguageModel.from_modules(build("gpt2").transformer, byte_tokenizer())
    assert bare.suffix.head is None
    states = bare.suffix.read(inputs, ["resid.1", "final_norm"])[0]
    with pytest.raises(UnsupportedModel, match="no logits"):
        bare.run_from("resid.1", states["resid.1"], inputs)
    later = bare.suffix.states_from("resid.1", states["resid.1"], inputs, ["final_norm"])
    torch.testing.assert_close(later["final_norm"], states["final_norm"], atol=0, rtol=0)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_beside_its_encoder_is_refused_before_anything_is_computed(tmp_path: Path, family: str) -> None:
    model = LanguageModel.from_modules(build(family), byte_tokenizer(), side="decoder")
    with pytest.raises(ReplayUnavailable, match="with a decoder"):
        extract(model, corpus_of("the cat"), sites="resid.*", to=tmp_path / "s", role="replay")
    assert not (tmp_path / "s").exists()


def test_a_family_whose_blocks_pass_on_more_than_states_is_refused_not_replayed_wrongly() -> None:
    """T5's first block makes the position biases of all the others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _noisy(build("t5"))
    model = LanguageModel.from_modules(network, byte_tokenizer())
    inputs = batch_of(model)
    states = model.suffix.read(inputs, ["resid.0", "resid.1"])[0]
    model.suffix.states_from("resid.0", states["resid.0"], inputs, ["final_norm"])
    with pytest.raises(ReplayUnavailable, match="more than states"):
        model.suffix.states_from("resid.1", states["resid.1"], inputs, ["final_norm"])
