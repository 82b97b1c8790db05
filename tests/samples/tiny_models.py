"""Small random models and tokenizers, built offline."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from probing.models.language_model import LanguageModel
from probing.text.corpus import Corpus, Example

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges: pieces include the space before them; no special pieces."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("in", "g")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece of single letters and a few words, with [CLS] and [SEP]."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "##ing", ".", "-"]
    pieces += [*LETTERS, *("##" + c for c in LETTERS)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def build(family: str, positions: int = 64) -> Any:
    """A two-layer model of width 16 with weights from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if family == "gpt2":
            size = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": positions}
            return GPT2LMHeadModel(GPT2Config(vocab_size=261, bos_token_id=0, eos_token_id=0, **size)).eval()
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        size["max_position_embeddings"] = positions
        if family == "llama":
            config = LlamaConfig(vocab_size=261, num_key_value_heads=1, **size)
            return LlamaForCausalLM(config).eval()
        if family == "bert":
            return BertForMaskedLM(BertConfig(vocab_size=61, **size)).eval()
        model = AutoModel.from_config(_config(family, size))
        return _noisy(model).eval()


FAMILIES = {
    "encoder": ("bert", "roberta", "distilbert", "modernbert", "deberta-v2"),
    "decoder": ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "gemma", "gemma2", "opt"),
    "both": ("t5", "bart"),
}


def _config(family: str, size: dict[str, int]) -> Any:
    n, d, ff = 2, 16, 24
    own: dict[str, dict[str, Any]] = {
        "roberta": size | {"pad_token_id": 1},
        "distilbert": {"n_layers": n, "dim": d, "n_heads": 2, "hidden_dim": ff},
        "modernbert": size | {"pad_token_id": 0, "global_attn_every_n_layers": 1},
        "deberta-v2": size | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "gpt_neox": size | {"use_parallel_residual": True},
        "mistral": size | {"num_key_value_heads": 1, "head_dim": 8},
        "qwen2": size | {"num_key_value_heads": 1},
        "gemma": size | {"num_key_value_heads": 1, "head_dim": 8},
        "gemma2": size | {"num_key_value_heads": 1, "head_dim": 8},
        "opt": {
            "num_hidden_layers": n,
            "hidden_size": d,
            "ffn_dim": ff,
            "num_attention_heads": 2,
            "word_embed_proj_dim": d,
            "max_position_embeddings": size["max_position_embeddings"],
        },
        "t5": {"num_layers": n, "d_model": d, "d_ff": ff, "num_heads": 2, "d_kv": 8, "decoder_start_token_id": 0},
        "bart": {
            "encoder_layers": n,
            "decoder_layers": n,
            "d_model": d,
            "encoder_ffn_dim": ff,
            "decoder_ffn_dim": ff,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "max_position_embeddings": size["max_position_embeddings"],
        },
    }
    return AutoConfig.for_model(family, vocab_size=261, **own[family])


def _noisy(model: Any) -> Any:
    """Weights of a size that shows every path; norms and biases are 1 and 0 at the start, and would hide an error."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    return model


@cache
def language_model(family: str, padding_side: str = "right", positions: int = 64) -> LanguageModel:
    """A checked model of `gpt2`, `llama` or `bert`."""
    tokenizer = wordpiece_tokenizer() if family == "bert" else byte_tokenizer()
    return LanguageModel.from_modules(build(family, positions), tokenizer, name=family, padding_side=padding_side)


def corpus_of(*texts: str) -> Corpus:
    """Words are what lies between spaces."""
    return Corpus(tuple(Example(id=f"s{i}", text=text, words=spans(text)) for i, text in enumerate(texts)))


def spans(text: str) -> tuple[tuple[int, int], ...]:
    """Spans of the words of a text."""
    found, start = [], 0
    for word in text.split():
        start = text.index(word, start)
        found.append((start, start + len(word)))
        start += len(word)
    return tuple(found)
