"""Laws of reading a model: states do not depend on the batch, and sites are what their names say."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModel, T5Config

from probing.errors import BadParameter, ReplayUnavailable, UnknownSite, UnsupportedModel
from probing.models.language_model import LanguageModel
from probing.models.loading.identity import untrained_twin
from tests.samples.tiny_models import build, byte_tokenizer, language_model, wordpiece_tokenizer

TEXTS = ["the thing", "a", "the cat is being in the hat", "on it"]
FAMILIES = ("gpt2", "llama", "bert")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_states_equal_one_by_one(family, side):
    model = language_model(family, side)
    inputs = model.encode(TEXTS)
    together, starts = model.states(inputs, model.sites), model.first_piece(inputs)
    for row, one in enumerate(inputs):
        alone = model.states([one], model.sites)
        for site in model.sites:
            mine = together[site][row, starts[row] : starts[row] + len(one)]
            torch.testing.assert_close(mine, alone[site][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_last_resid_through_final_norm_and_head_gives_the_logits(family):
    model = language_model(family)
    inputs = model.encode(TEXTS[2:3])
    states = model.states(inputs, ("resid.2", "final_norm"))
    inner = model._model
    norm = inner.transformer.ln_f if family == "gpt2" else inner.model.norm
    with torch.inference_mode():
        torch.testing.assert_close(norm(states["resid.2"]), states["final_norm"])
        torch.testing.assert_close(inner.lm_head(norm(states["resid.2"])), model.logits(inputs), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(states["resid.2"], states["final_norm"], atol=1e-3)


def test_last_resid_of_a_post_norm_encoder_is_its_last_state():
    model = language_model("bert")
    assert "final_norm" not in model.sites
    inputs = model.encode(TEXTS[:1])
    ids = torch.from_numpy(inputs[0].ids)[None]
    with torch.inference_mode():
        expected = model._model.bert(ids).last_hidden_state
    torch.testing.assert_close(model.states(inputs, ["resid.2"])["resid.2"], expected)
    assert model.logits(inputs).shape == (1, len(inputs[0]), 61)


@pytest.mark.parametrize("family", FAMILIES)
def test_embed_is_the_piece_embedding_alone(family):
    model = language_model(family)
    inputs = model.encode(TEXTS[:1])
    with torch.inference_mode():
        expected = model._model.get_input_embeddings()(torch.from_numpy(inputs[0].ids)[None])
    torch.testing.assert_close(model.states(inputs, ["embed"])["embed"], expected)


def test_sites_are_in_order_and_have_widths():
    model = language_model("gpt2")
    inner = [f"{kind}.{layer}" for layer in (0, 1) for kind in ("resid", "heads", "attn_out", "mlp_out")]
    assert model.sites == ("embed", *inner, "resid.2", "final_norm")
    assert {model.width(site) for site in model.sites} == {16}


def test_one_piece_is_read():
    model = language_model("gpt2")
    inputs = model.encode(["a"])
    assert len(inputs[0]) == 1 and model.states(inputs, ["resid.2"])["resid.2"].shape == (1, 1, 16)


def test_input_without_pieces_is_refused():
    model = language_model("gpt2")
    with pytest.raises(BadParameter, match="without pieces"):
        model.states(model.encode([""]), ["resid.0"])


def test_hooks_are_gone_after_reading():
    model = language_model("llama")
    model.states(model.encode(["a"]), model.sites)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model._model.modules())


def test_unknown_site_names_the_nearest():
    model = language_model("gpt2")
    with pytest.raises(UnknownSite, match=r"did you mean 'resid\.2'"):
        model.states(model.encode(["a"]), ["resid.22"])


def test_saved_model_loads_with_its_head_and_an_identity_without_paths(tmp_path):
    folder = tmp_path / "tiny-gpt2"
    build("gpt2").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    model = LanguageModel.load(str(folder))
    identity = model.identity()
    assert model.logits(model.encode(["a the"])).shape[-1] == 261
    assert identity["model"]["source"] == "tiny-gpt2" and len(identity["model"]["weights"]["model.safetensors"]) == 64
    assert str(tmp_path) not in str(identity)


def test_other_weights_have_another_identity():
    one, other = build("gpt2"), build("gpt2")
    with torch.no_grad():
        other.transformer.ln_f.bias[0] += 1e-3
    ids = [LanguageModel.from_modules(m, byte_tokenizer(), check=False).identity() for m in (one, build("gpt2"), other)]
    assert ids[0] == ids[1] != ids[2]


def test_wrong_folder_names_the_nearest_beside_it(tmp_path):
    (tmp_path / "tiny-gpt2").mkdir()
    with pytest.raises(UnsupportedModel, match=r"did you mean .*tiny-gpt2"):
        LanguageModel.load(str(tmp_path / "tiny-gpt3"))
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        LanguageModel.load(str(tmp_path / "tiny-gpt2"))


def test_unreachable_hub_name_is_a_readable_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        LanguageModel.load("no-such-model-anywhere")


def test_folder_of_pickled_weights_only_is_refused(tmp_path):
    build("gpt2").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="--allow-pickle-weights"):
        LanguageModel.load(str(tmp_path))


def test_a_model_whose_batches_leak_reads_its_inputs_one_by_one_and_is_not_edited():
    model = build("gpt2")
    honest = model.transformer.h[1].forward
    model.transformer.h[1].forward = lambda states, *a, **k: honest(states, *a, **k) + states.mean((0, 1))
    leaking = LanguageModel.from_modules(model, byte_tokenizer())
    inputs = leaking.encode(["the thing", "a"])
    together = leaking.states(inputs, ["resid.2"])["resid.2"]
    for row, one in enumerate(inputs):
        alone = leaking.states([one], ["resid.2"])["resid.2"][0]
        torch.testing.assert_close(together[row, : len(one)], alone)
    with pytest.raises(ReplayUnavailable, match="reads inputs one by one"):
        leaking.run_from("resid.1", together, leaking.padded(inputs))


def test_self_check_says_of_a_model_that_draws_at_random_that_it_does():
    model = build("gpt2")
    honest = model.transformer.h[1].forward
    model.transformer.h[1].forward = lambda states, *a, **k: honest(states, *a, **k) + torch.rand(())
    with pytest.raises(UnsupportedModel, match=r"is another each time"):
        LanguageModel.from_modules(model, byte_tokenizer())


def test_a_norm_that_nothing_ends_with_is_not_the_final_one():
    model = build("gpt2")
    model.transformer.register_forward_hook(lambda module, args, output: (output[0] * 2,))
    assert "final_norm" not in LanguageModel.from_modules(model, byte_tokenizer()).sites
    assert "final_norm" in LanguageModel.from_modules(build("gpt2"), byte_tokenizer()).sites


def test_encoder_of_an_encoder_decoder_is_read():
    config = T5Config(vocab_size=61, d_model=16, num_layers=2, d_ff=16, num_heads=2, d_kv=8, decoder_start_token_id=0)
    model = LanguageModel.from_modules(AutoModel.from_config(config), wordpiece_tokenizer())
    assert {site for site in model.sites if "." not in site or "resid" in site} == {
        "embed",
        "resid.0",
        "resid.1",
        "resid.2",
        "final_norm",
    }


@pytest.mark.parametrize(("option", "value"), [("dtype", "float8"), ("kind", "seq2seq"), ("device", "nowhere")])
def test_bad_options_are_refused_before_loading(option, value):
    with pytest.raises(BadParameter):
        LanguageModel.load("gpt2", **{option: value})


def test_model_without_head_has_no_logits():
    model = LanguageModel.from_modules(build("gpt2").transformer, byte_tokenizer())
    with pytest.raises(UnsupportedModel, match="kind='causal'"):
        model.logits(model.encode(["a"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_many_states_are_the_same_states_and_leave_no_trace(family, dtype):
    of = language_model(family)
    model = LanguageModel.from_modules(copy.deepcopy(of._model).to(dtype), of.tokenizer)
    inputs = model.encode(["the thing", "a", "the being in the inning"])
    plain = model.states(inputs, model.sites)
    with model.many_states(model.sites):
        packed = model.states(inputs, model.sites)
    for site in model.sites:
        close = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
        torch.testing.assert_close(packed[site], plain[site], **close)
        assert torch.equal(model.states(inputs, [site])[site], plain[site])


def test_the_untrained_twin_is_another_model_of_the_same_shape_and_says_so(tmp_path):
    build("llama").save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    trained = LanguageModel.load(str(tmp_path / "m"))
    before = torch.get_rng_state()
    one, same, other = (LanguageModel.load(str(tmp_path / "m"), untrained=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    weights = [dict(model._model.named_parameters()) for model in (trained, one, same, other)]
    for name, weight in weights[0].items():
        assert weight.shape == weights[1][name].shape and torch.equal(weights[1][name], weights[2][name])
        if weight.ndim > 1:
            assert not torch.equal(weight, weights[1][name]) and not torch.equal(weights[1][name], weights[3][name])
    ids = [model.identity()["model"] for model in (trained, one, same, other)]
    assert ids[1] == ids[2] and len({str(identity) for identity in ids}) == 3
    assert ids[1]["untrained"]["seed"] == 0 and ids[1]["weights"] == ids[0]["weights"] and "untrained" not in ids[0]


def test_a_twin_that_kept_its_weights_is_refused():
    class Stubborn(torch.nn.Linear):
        def __init__(self, config):
            super().__init__(2, 2)
            self.config = config
            torch.nn.init.ones_(self.weight)

    with pytest.raises(UnsupportedModel, match="pretrained weights"):
        untrained_twin(Stubborn({}), 0)
