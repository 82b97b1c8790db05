"""Laws of sites over families of models: what their names say, batches and padding, and where transformers differs."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AlbertConfig, AutoModel

from probing.errors import UnknownSite, UnsupportedModel
from probing.models.language_model import LanguageModel
from tests.samples.tiny_models import FAMILIES, build, byte_tokenizer, wordpiece_tokenizer

TEXTS = ["the thing", "a", "the cat is being in the hat", "on it"]
DECODER_SIDES = tuple(f"{family}/decoder" for family in FAMILIES["both"])
ALL = [*(family for names in FAMILIES.values() for family in names), *DECODER_SIDES]
POST_NORM = ("bert", "roberta", "distilbert", "deberta-v2", "bart", "bart/decoder")
COUNTS_POSITIONS = ("bart", "bart/decoder")  # positions are counted from the left edge and cannot be given
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}

pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def read(family: str, side: str = "right", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A family, or a decoder beside its encoder: `t5/decoder`."""
    tokenizer = wordpiece_tokenizer() if family == "bert" else byte_tokenizer()
    kind, _, part = family.partition("/")
    return LanguageModel.from_modules(
        build(kind).to(dtype), tokenizer, name=family, padding_side=side, side=part or None
    )


def ids_of(model: LanguageModel, text: str) -> torch.Tensor:
    return torch.from_numpy(model.encode([text])[0].ids)[None]


def hidden_states(model: LanguageModel, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Those that transformers gives; of a decoder beside an encoder, at the positions that have read each piece."""
    trunk = model._trunk.trunk
    if not model.name.endswith("/decoder"):
        return trunk(ids, output_hidden_states=True).hidden_states
    start = torch.full((1, 1), trunk.config.decoder_start_token_id)
    states = trunk(ids, decoder_input_ids=torch.cat([start, ids], 1), output_hidden_states=True).decoder_hidden_states
    return tuple(state[:, 1:] for state in states)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ALL)
def test_every_site_is_the_same_alone_and_in_a_batch(family: str, side: str, dtype: torch.dtype) -> None:
    if side == "left" and family in COUNTS_POSITIONS:
        with pytest.raises(UnsupportedModel, match="changes with the batch"):
            read(family, side, dtype)
        return
    model = read(family, side, dtype)
    inputs = model.encode(TEXTS)
    together, starts = model.states(inputs, model.sites), model.first_piece(inputs)
    for row, one in enumerate(inputs):
        alone = model.states([one], model.sites)
        for site in model.sites:
            mine, other = together[site][row, starts[row] : starts[row] + len(one)], alone[site][0]
            scale = float(other.abs().max()) or 1.0
            torch.testing.assert_close(mine, other, atol=DTYPES[dtype] * scale, rtol=0, msg=f"{family} {site}")


@pytest.mark.parametrize("family", ALL)
def test_resid_is_what_transformers_calls_hidden_states_except_the_last(family: str) -> None:
    """`hidden_states[L]` is `resid.L` only where there is no final norm; else it is `final_norm`."""
    model = read(family)
    inputs = model.encode(TEXTS[2:3])
    with torch.inference_mode():
        theirs = hidden_states(model, ids_of(model, TEXTS[2]))
    ours = model.states(inputs, model.sites)
    assert len(theirs) == 3
    for layer in (0, 1):
        torch.testing.assert_close(ours[f"resid.{layer}"], theirs[layer])
    has_norm = "final_norm" in model.sites
    torch.testing.assert_close(ours["final_norm" if has_norm else "resid.2"], theirs[2])
    assert has_norm == (family not in POST_NORM)
    assert not has_norm or not torch.allclose(ours["resid.2"], theirs[2], atol=1e-3)


@pytest.mark.parametrize("family", ALL)
def test_sublayers_are_found_and_add_up(family: str) -> None:
    model = read(family)
    inputs = model.encode(TEXTS[2:3])
    state = model.states(inputs, model.sites)
    assert {f"{kind}.{layer}" for kind in ("heads", "attn_out", "mlp_out") for layer in (0, 1)} <= set(model.sites)
    for layer in (0, 1):
        x, y = state[f"resid.{layer}"], state[f"resid.{layer + 1}"]
        total = x + state[f"attn_out.{layer}"] + state[f"mlp_out.{layer}"]
        assert (f"cross_out.{layer}" in state) == (family in DECODER_SIDES)
        if family in DECODER_SIDES:
            total = total + state[f"cross_out.{layer}"]
        assert torch.allclose(total, y, atol=1e-5) == (family not in POST_NORM)


@pytest.mark.parametrize("family", ALL)
def test_heads_go_through_the_output_projection(family: str) -> None:
    """A head's slice set to zero changes the projection by that head's columns of its weight, and nothing else."""
    model = read(family)
    inputs = model.encode(TEXTS[2:3])
    heads = model.states(inputs, ["heads.1"])["heads.1"]
    assert model._trunk.n_heads == 2 and heads.shape[-1] % 2 == 0
    projection = model._trunk.trunk.get_submodule(model.modules["heads.1"])
    cut = heads.clone()
    cut[..., : heads.shape[-1] // 2] = 0
    model._trunk.add_site("projected", model.modules["heads.1"])
    with torch.inference_mode():
        torch.testing.assert_close(projection(heads), model.states(inputs, ["projected"])["projected"])
        assert not torch.allclose(projection(cut), projection(heads), atol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_attention_mixes_positions_and_what_a_head_gives_depends_on_them(family: str) -> None:
    """Between the two sublayers of the first block only attention sees the other pieces."""
    model = read(family)
    one, other = (
        model.states(model.encode([text]), ["resid.0", "attn_out.0"]) for text in ("a thing on", "b thing on")
    )
    torch.testing.assert_close(one["resid.0"][:, -1], other["resid.0"][:, -1])
    assert not torch.allclose(one["attn_out.0"][:, -1], other["attn_out.0"][:, -1], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bert", "gemma2"])
def test_a_module_path_is_a_site(family: str) -> None:
    model = read(family)
    path = {"gpt2": "h.1.mlp.c_fc", "bert": "bert.encoder.layer.1.intermediate.dense", "gemma2": "layers.1.mlp.up_proj"}
    model._trunk.add_site("inner.1", path[family])
    kept = []
    module = model._model.get_submodule(("transformer." if family == "gpt2" else "") + path[family])
    handle = module.register_forward_hook(lambda _, args, output: kept.append(output))
    inputs = model.encode(TEXTS[:1])
    state = model.states(inputs, ["inner.1", "resid.0"])["inner.1"]
    handle.remove()
    torch.testing.assert_close(state, kept[0])


def test_unknown_module_paths_and_taken_names_are_refused() -> None:
    model = read("gpt2")
    with pytest.raises(UnknownSite, match=r"did you mean .*h\.1\.mlp"):
        model._trunk.add_site("inner", "h.1.mpl")
    with pytest.raises(UnknownSite, match=r"resid\.1 is"):
        model._trunk.add_site("resid.1", "h.1.mlp")
    with pytest.raises(UnknownSite, match="not a site name"):
        model._trunk.add_site("Inner Site", "h.1.mlp")


@pytest.mark.parametrize("family", ALL)
def test_nothing_above_the_highest_wanted_site_runs(family: str) -> None:
    model = read(family)
    ran = []
    handles = [
        block.register_forward_hook(lambda module, args, output, i=i: ran.append(i))
        for i, block in enumerate(model._trunk.blocks)
    ]
    for site, expected in (("embed", []), ("resid.0", []), ("resid.1", [0]), ("mlp_out.1", [0]), ("resid.2", [0, 1])):
        ran.clear()
        model.states(model.encode(TEXTS), [site])
        assert ran == expected, site
    for handle in handles:
        handle.remove()


def test_blocks_that_run_more_than_once_are_refused() -> None:
    config = AlbertConfig(
        vocab_size=61,
        embedding_size=16,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
    )
    with pytest.raises(UnsupportedModel, match="block 0 runs 3 times"):
        LanguageModel.from_modules(AutoModel.from_config(config).eval(), wordpiece_tokenizer())
