"""Laws of modules read by dotted paths: any module over pieces, and families whose blocks nobody finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AutoModel, PretrainedConfig, PreTrainedModel

from probing.errors import BadParameter, UnknownSite, UnsupportedModel
from probing.jobs import ExtractJob
from probing.models.language_model import LanguageModel
from probing.states.extraction import extract
from tests.samples.tiny_models import byte_tokenizer, corpus_of, wordpiece_tokenizer

TEXTS = ["the cat is being", "a", "on the mat"]
CORPUS = corpus_of(*TEXTS)


class Recurrent(nn.Module):
    """Takes no mask, and would read padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(261, 8)
        self.inner = nn.LSTM(8, 6, batch_first=True, bidirectional=True)

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.inner(self.table(ids))[0]
        return states


class Attending(nn.Module):
    """Takes a mask, by another name and of another meaning than usual."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(261, 8)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 2, enable_nested_tensor=False
        )

    def forward(self, ids: Tensor, ignored: Tensor) -> Tensor:
        states: Tensor = self.layers(self.table(ids), src_key_padding_mask=ignored)
        return states


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


def run_attending(module: nn.Module, ids: Tensor, mask: Tensor) -> Any:
    return module(ids, mask == 0)


def run_time_first(module: nn.Module, ids: Tensor, mask: Tensor) -> Any:
    """(T, B, D) inside, as many modules are made: with a batch of T inputs the shape alone would not tell."""
    return module(ids.T)


SITES = {"lstm": {"embed": "table", "lstm": "inner"}, "attention": {"resid.1": "layers.layers.0", "last": "layers"}}


def wrapped(kind: str, **options: Any) -> LanguageModel:
    if kind == "lstm":
        return LanguageModel.wrap(made(Recurrent), byte_tokenizer(), sites=SITES[kind], name="toy", **options)
    options = {"call": run_attending} | options
    return LanguageModel.wrap(made(Attending), byte_tokenizer(), sites=SITES[kind], name="toy", **options)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", SITES)
def test_states_are_the_modules_own_and_do_not_depend_on_the_batch(tmp_path: Path, kind: str, side: str) -> None:
    model = wrapped(kind, padding_side=side)
    store = extract(model, CORPUS, sites="*", rows="piece", to=tmp_path / "s", progress=False)
    assert set(store.sites) == set(SITES[kind])
    last = store.sites[-1]
    for row, one in enumerate(model.encode(TEXTS)):
        ids = torch.from_numpy(one.ids)[None]
        with torch.inference_mode():
            whole = model._model(ids) if kind == "lstm" else model._model(ids, torch.zeros_like(ids, dtype=torch.bool))
        np.testing.assert_allclose(store.read(last)[store.rows.example == row], whole[0], atol=1e-5)


def test_a_module_that_is_run_without_its_mask_is_refused() -> None:
    def forgetful(module: nn.Module, ids: Tensor, mask: Tensor) -> Any:
        return module(ids, torch.zeros_like(mask, dtype=torch.bool))

    with pytest.raises(UnsupportedModel, match=r"'Attending'(.|\n)*changes with the batch"):
        wrapped("attention", call=forgetful)


def test_how_a_module_is_run_and_where_it_is_read_is_part_of_what_a_store_is(tmp_path: Path) -> None:
    def other(module: nn.Module, ids: Tensor, mask: Tensor) -> Any:
        return module(ids, ~mask.bool())

    one, two = wrapped("attention").identity()["model"], wrapped("attention", call=other).identity()["model"]
    assert {key for key in one if one[key] != two[key]} == {"call"}
    assert one["class"] == "Attending" and "call" not in wrapped("lstm").identity()["model"]
    store = extract(wrapped("lstm"), CORPUS, sites="lstm", to=tmp_path / "s", progress=False)
    assert store.identity["extraction"]["modules"] == {"lstm": "inner"}


def test_paths_and_sites_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(UnknownSite, match="did you mean 'inner'"):
        LanguageModel.wrap(made(Recurrent), byte_tokenizer(), sites={"x": "iner"})
    with pytest.raises(UnknownSite, match="not a site name"):
        LanguageModel.wrap(made(Recurrent), byte_tokenizer(), sites={"X y": "inner"})
    with pytest.raises(UnsupportedModel, match="x has shape"):
        LanguageModel.wrap(made(Recurrent), byte_tokenizer(), sites={"x": "inner"}, call=run_time_first)
    with pytest.raises(BadParameter, match="no parameters"):
        LanguageModel.wrap(nn.Identity(), byte_tokenizer(), sites={})


def test_a_wrapped_module_has_no_logits_and_only_its_own_sites() -> None:
    model = wrapped("lstm")
    with pytest.raises(UnsupportedModel, match="no logits"):
        model.logits(model.encode(["a"]))
    with pytest.raises(UnknownSite, match="did you mean 'lstm'"):
        model.states(model.encode(["a"]), ["lst"])
    assert model.max_length is None and wrapped("lstm", max_length=9).max_length == 9


class OddConfig(PretrainedConfig):
    model_type = "odd"


class Odd(PreTrainedModel):
    """A Hugging Face model whose blocks are in no list."""

    config_class = OddConfig

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(261, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        return (self.second(self.first(self.table(input_ids)).tanh()),)


def test_a_family_without_a_list_of_blocks_says_so_and_is_read_by_paths(tmp_path: Path) -> None:
    odd = Odd(OddConfig()).eval()
    with pytest.raises(UnsupportedModel, match=r"'odd'(.|\n)*a list of Transformer blocks(.|\n)*module paths"):
        LanguageModel.from_modules(odd, byte_tokenizer())
    model = LanguageModel.from_modules(odd, byte_tokenizer(), by_blocks=False)
    assert model.sites == ("embed",)
    store = extract(
        model, CORPUS, sites="resid.1=first,resid.2=second", rows="piece", to=tmp_path / "s", progress=False
    )
    (one, *_) = model.encode(TEXTS)
    with torch.inference_mode():
        expected = odd(torch.from_numpy(one.ids)[None])[0][0]
    np.testing.assert_allclose(store.read("resid.2")[store.rows.example == 0], expected, atol=1e-6)


def test_the_job_reads_by_paths_alone_where_only_paths_are_asked_for(tmp_path: Path) -> None:
    """ALBERT runs one block for every layer, and is refused by blocks."""
    sizes = {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    AutoModel.from_config(AlbertConfig(vocab_size=61, intermediate_size=24, **sizes)).save_pretrained(tmp_path / "m")
    wordpiece_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "c.jsonl").write_text('{"text": "the cat"}\n')
    common = {"model": str(tmp_path / "m"), "corpus": str(tmp_path / "c.jsonl")}
    with pytest.raises(UnsupportedModel, match="block 0 runs 3 times"):
        ExtractJob(**common, to=str(tmp_path / "a")).run(progress=False)
    store = ExtractJob(**common, to=str(tmp_path / "b"), sites="into=encoder.embedding_hidden_mapping_in").run(
        progress=False
    )
    assert store.sites == ("into",) and len(store.rows.example) == 2
    with pytest.raises(UnsupportedModel, match="is met 3 times"):
        group = "x=encoder.albert_layer_groups.0"
        ExtractJob(**common, to=str(tmp_path / "c"), sites=group).run(progress=False)
