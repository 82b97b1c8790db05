"""Laws of model folders: damaged, half-downloaded and absurd ones are refused with the reason, before they are read."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AlbertConfig, AutoModel, MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from probing.errors import BadParameter, UnsupportedModel, UnusedWeights
from probing.models.language_model import LanguageModel
from probing.models.loading.pretrained import configuration
from tests.samples.tiny_models import build, byte_tokenizer, wordpiece_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama and its tokenizer."""
    build("llama").save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def cut(folder: Path) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:-100])


def bomb(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9, 10**3], "data_offsets": [0, 4 * 10**12]}}).encode()
    weights(folder).write_bytes(struct.pack("<Q", len(header)) + header)


def long_header(folder: Path) -> None:
    weights(folder).write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def garbage(folder: Path) -> None:
    weights(folder).write_bytes(struct.pack("<Q", 4) + b"\xff\xfe{}" + bytes(100))


def pointer(folder: Path) -> None:
    weights(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def pointer_of_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def lost_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights(folder).rename(folder / "model-00001-of-00002.safetensors")


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda content: content.update(values))


def pattern(folder: Path) -> None:
    broken = {"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False}
    edit(folder / "tokenizer.json", lambda content: content.update(pre_tokenizer=broken))


def endless_limit(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda content: content.update(model_max_length="x"))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, r"damaged or half downloaded(.|\n)*bytes of"),
    "bomb": (bomb, r"damaged or half downloaded"),
    "long_header": (long_header, r"shorter than its header"),
    "garbage": (garbage, r"header is not readable"),
    "pointer": (pointer, r"Git LFS pointer(.|\n)*git lfs pull"),
    "pointer_of_tokenizer": (pointer_of_tokenizer, r"Git LFS pointer(.|\n)*tokenizer\.json"),
    "lost_shard": (lost_shard, r"1 files are not there: model-00002"),
    "zero_heads": (config(num_attention_heads=0), r"num_attention_heads"),
    "zero_layers": (config(num_hidden_layers=0), r"num_hidden_layers"),
    "unknown_dtype": (config(dtype="float99"), r"cannot be loaded"),
    "wide": (config(hidden_size=10**9), r"cannot be built here(.|\n)*GiB|cannot be counted|cannot be built"),
    "deep": (config(num_hidden_layers=10**6), r"num_hidden_layers = 1,000,000"),
    "vocabulary": (config(vocab_size=10**12), r"GiB"),
    "pattern": (pattern, r"cannot be loaded|fails on a plain text"),
    "limit": (endless_limit, r"limit of an input is no number"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_the_reason(damage: str, folder: Path) -> None:
    spoil, reason = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        LanguageModel.load(str(folder))
    assert caught.value.next_step


def test_a_sound_folder_is_read(folder: Path) -> None:
    assert "resid.2" in LanguageModel.load(str(folder)).sites


def test_a_piece_without_a_vector_is_named_with_both_sizes(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["zzz"])
    model = LanguageModel.from_modules(build("llama"), tokenizer)
    assert len(model.encode(["the"])) == 1
    with pytest.raises(UnsupportedModel, match=r"ids below 261(.|\n)*'zzz' with id 261, of 262 pieces"):
        model.encode(["a zzz"])


def test_padding_that_has_no_vector_is_another_piece(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model, plain = (LanguageModel.from_modules(build("llama"), t) for t in (tokenizer, byte_tokenizer()))
    texts = ["the thing", "a"]
    found, expected = (m.states(m.encode(texts), ["resid.2"])["resid.2"] for m in (model, plain))
    torch.testing.assert_close(found[1, :1], expected[1, :1])


def marian() -> Any:
    own = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return MarianMTModel(
        MarianConfig(
            vocab_size=261,
            d_model=16,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=32,
            pad_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            **own,
        )
    )


def test_sinusoids_that_files_need_not_hold_are_recomputed(tmp_path: Path) -> None:
    model = marian()
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = LanguageModel.load(str(tmp_path))
    expected = LanguageModel.from_modules(model, byte_tokenizer())
    text = expected.encode(["the thing"])
    torch.testing.assert_close(loaded.states(text, ["resid.1"]), expected.states(text, ["resid.1"]))


@pytest.mark.parametrize("key", ["model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_trained_weights_that_files_lack_are_refused_though_they_begin_as_a_constant(key: str, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(weights(folder))
    del state[key]
    save_file(state, weights(folder), metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=f"1 missing: {key}"):
        LanguageModel.load(str(folder))


def test_what_a_model_raises_while_it_is_examined_is_a_refusal() -> None:
    """A block that fails on a small text, in the search for its parts or in the check, ends in one sentence."""

    class Failing(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise KeyError("recurrent_states")

    model = build("llama")
    model.model.layers[1].mlp = Failing()
    with pytest.raises(UnsupportedModel, match=r"'llama' do not run on text alone(.|\n)*recurrent_states"):
        LanguageModel.from_modules(model, byte_tokenizer())


def test_a_slow_tokenizer_and_a_shared_block_are_refused() -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    albert = AutoModel.from_config(AlbertConfig(vocab_size=61, embedding_size=16, **size)).eval()
    with pytest.raises(UnsupportedModel, match="block 0 runs 2 times"):
        LanguageModel.from_modules(albert, wordpiece_tokenizer())
    assert isinstance(wordpiece_tokenizer(), PreTrainedTokenizerFast)


def integers(folder: Path) -> None:
    tensors = {name: (100 * tensor).to(torch.int8) for name, tensor in load_file(weights(folder)).items()}
    save_file(tensors, weights(folder), metadata={"format": "pt"})


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (integers, "whole numbers, which config.json says nothing of"),
        (config(quantization_config={"quant_method": "zzz"}), "quantised in an unknown way"),
        (adapter, "an adapter, which would not be read"),
        (config(num_hidden_layers="3"), "num_hidden_layers(.|\n)*int"),
        (config(vocab_size=7), "other shapes than config.json says"),
    ],
)
def test_weights_that_would_be_read_as_others_are_refused(
    damage: Callable[[Path], None], reason: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(UnsupportedModel, match=reason):
        LanguageModel.load(str(folder))


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama", "t5", "bart"])
def test_a_folder_without_a_tokenizer_is_refused_whatever_transformers_makes_up(family: str, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path / "m")
    with pytest.raises(UnsupportedModel, match="tokenizer"):
        LanguageModel.load(str(tmp_path / "m"))


@pytest.mark.parametrize("change", ["fewer layers", "an adapter inside"])
def test_weights_of_blocks_that_are_not_used_are_named(change: str, folder: Path) -> None:
    if change == "fewer layers":
        edit(folder / "config.json", lambda found: found.update(num_hidden_layers=found["num_hidden_layers"] - 1))
    else:
        tensors = load_file(weights(folder)) | {"model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2, 2)}
        save_file(tensors, weights(folder), metadata={"format": "pt"})
    with pytest.warns(UnusedWeights, match=r"weights of blocks that the model does not use: model\.layers\.\d"):
        LanguageModel.load(str(folder))


def test_weights_of_heads_that_were_not_asked_for_are_passed_over(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedWeights)
        LanguageModel.load(str(folder), kind="base")


def test_a_folder_has_no_revision_but_the_one_that_it_is_a_snapshot_of(folder: Path) -> None:
    for read in (LanguageModel.load, configuration):
        with pytest.raises(BadParameter, match="a local folder has no revisions"):
            read(str(folder), revision="main")
    snapshot = folder.parent / "snapshots" / "0a1b"
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    LanguageModel.load(str(snapshot), revision="0a1b")
    with pytest.raises(BadParameter, match="a local folder has no revisions"):
        LanguageModel.load(str(snapshot), revision="main")


@pytest.mark.parametrize("device", [None, torch.device("cpu"), "cpu"])
def test_a_device_is_a_name_or_an_object_and_none_is_the_cpu(device: torch.device | str | None, folder: Path) -> None:
    assert LanguageModel.load(str(folder), device=device).device == "cpu"


def test_a_device_without_numbers_is_refused(folder: Path) -> None:
    with pytest.raises(BadParameter, match="no device 'meta'"):
        LanguageModel.load(str(folder), device="meta")
