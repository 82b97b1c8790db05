"""Laws of what a store says of a site: how its heads are cut, and that no state is stored as another number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from transformers import AutoModel, GemmaConfig

from probing.errors import NonFiniteStates, NotRepresentable, UnknownSite
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from tests.samples.tiny_models import build, byte_tokenizer, corpus_of, language_model

CORPUS = corpus_of("the cat", "a thing is in")

pytestmark = pytest.mark.filterwarnings("ignore")


def gemma(head_dim: int) -> Any:
    """Heads whose size is not hidden size / heads, and one key-value head for two queries."""
    config = GemmaConfig(
        vocab_size=261,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        head_dim=head_dim,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(config).eval()


@pytest.mark.parametrize(("name", "head_dim"), [("gpt2", 8), ("llama", 8), ("gemma", 12)])
def test_the_shards_say_how_heads_are_cut(tmp_path: Path, name: str, head_dim: int) -> None:
    """In each family the first head's queries alone fill the first `head_dim` columns of `heads.1`."""
    network = gemma(head_dim) if name == "gemma" else build(name)
    model = LanguageModel.from_modules(network, byte_tokenizer())
    store = extract(model, CORPUS, sites="resid.1,heads.1", rows="piece", to=tmp_path / "s", progress=False)
    facts = store.site_facts("heads.1")
    assert (facts["n_heads"], facts["head_dim"]) == (2, head_dim) and store.width("heads.1") == 2 * head_dim
    assert facts["absmax"] == pytest.approx(float(np.abs(store.read("heads.1")).max()))
    assert "n_heads" not in store.site_facts("resid.1")
    (file,) = (tmp_path / "s" / "shards").glob("*.h5")
    with h5py.File(file) as opened:
        assert dict(opened["/sites/heads.1"].attrs)["head_dim"] == head_dim
    assert store.verify() == []

    if name != "gpt2":  # queries of the first head to zero: that head alone becomes a plain mean
        with torch.no_grad():
            inner = network.layers if name == "gemma" else network.model.layers
            inner[1].self_attn.q_proj.weight[:head_dim] = 0
        changed = extract(model, CORPUS, sites="heads.1", rows="piece", to=tmp_path / "c", progress=False)
        same = np.isclose(changed.read("heads.1"), store.read("heads.1"), atol=1e-6).all(axis=0)
        assert same[head_dim:].all() and not same[:head_dim].all()


def test_facts_of_an_unknown_site_name_the_nearest(tmp_path: Path) -> None:
    store = extract(language_model("gpt2"), CORPUS, sites="heads.1", to=tmp_path / "s", progress=False)
    with pytest.raises(UnknownSite, match=r"did you mean 'heads\.1'"):
        store.site_facts("head.1")


def loud(dtype: torch.dtype = torch.float32) -> Any:
    """A GPT-2 whose embedding of one letter is finite, and too large for float16."""
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[ord("c") - ord("!")] = 1e5
    return model.to(dtype)


def test_a_finite_state_that_overflows_float16_is_named_and_bfloat16_proposed(tmp_path: Path) -> None:
    model = LanguageModel.from_modules(loud(), byte_tokenizer())
    options: dict[str, Any] = {"sites": "embed,resid.*", "rows": "piece", "progress": False}
    with pytest.raises(NotRepresentable) as caught:
        extract(model, CORPUS, dtype="float16", to=tmp_path / "h", **options)
    assert caught.value.where == "site embed" and "65504" in caught.value.needed
    assert caught.value.found == "absmax 100000" and "bfloat16" in caught.value.next_step
    assert not (tmp_path / "h").exists()
    store = extract(model, CORPUS, dtype="bfloat16", to=tmp_path / "b", **options)
    exact = extract(model, CORPUS, to=tmp_path / "f", **options)
    np.testing.assert_allclose(store.read("embed"), exact.read("embed"), rtol=2**-8)
    # What is stored is the pooled row: the mean of three pieces, of which one is too large, fits.
    pooled = extract(model, CORPUS, sites="embed", dtype="float16", to=tmp_path / "w", progress=False)
    assert abs(float(pooled.read("embed").max()) - 1e5 / 3) < 32


def test_the_largest_float16_is_stored_and_the_next_rounding_up_is_not(tmp_path: Path) -> None:
    """65519 rounds to 65504; 65520 rounds to infinity: numpy alone would store it."""
    network = build("gpt2")
    with torch.no_grad():
        network.transformer.wte.weight[:] = 65519.0
    model = LanguageModel.from_modules(network, byte_tokenizer())
    options: dict[str, Any] = {"sites": "embed", "rows": "piece", "dtype": "float16", "progress": False}
    assert (extract(model, CORPUS, to=tmp_path / "a", **options).read("embed") == 65504).all()
    with torch.no_grad():
        network.transformer.wte.weight[:] = 65520.0
    assert np.isinf(np.float32(65520).astype(np.float16))
    with pytest.raises(NotRepresentable, match="absmax 65520"):
        extract(model, CORPUS, to=tmp_path / "b", **options)


def test_overflow_in_a_float16_model_is_not_finite_and_a_wider_dtype_is_proposed(tmp_path: Path) -> None:
    model = LanguageModel.from_modules(build("gpt2").to(torch.float16), byte_tokenizer())
    with torch.no_grad():
        model._model.transformer.wte.weight[ord("c") - ord("!")] = 6e4
        model._model.transformer.wpe.weight[:] = 6e4
    with pytest.raises(NonFiniteStates, match=r"bfloat16(.|\n)*") as caught:
        extract(model, CORPUS, sites="resid.0", to=tmp_path / "s", progress=False)
    assert "sentence s0" in caught.value.where and "resid.0" in caught.value.where
    with pytest.raises(NonFiniteStates, match=r"not finite in torch\.float16"):
        broken = build("gpt2")
        with torch.no_grad():
            broken.transformer.wpe.weight[:] = 6e4
            broken.transformer.wte.weight[:] = 6e4
        LanguageModel.from_modules(broken.to(torch.float16), byte_tokenizer())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_stores_of_every_dtype_and_padding_are_those_of_one_by_one(tmp_path: Path, dtype: str, side: str) -> None:
    """In batches and one by one, up to the dtype's own rounding; position ids count from the first real piece."""
    network = build("gpt2").to(getattr(torch, dtype))
    model = LanguageModel.from_modules(network, byte_tokenizer(), padding_side=side)
    corpus = corpus_of("the thing is being", "a", "one two three")
    many = extract(model, corpus, rows="piece", to=tmp_path / "m", progress=False)
    single = extract(model, corpus, rows="piece", tokens_per_batch=1, to=tmp_path / "s", progress=False)
    assert many.identity["extraction"]["dtype"] == dtype == many.identity["model"]["dtype"]
    step = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}[dtype]
    for site in many.sites:
        expected = single.read(site)
        np.testing.assert_allclose(many.read(site), expected, atol=step * np.abs(expected).max())
