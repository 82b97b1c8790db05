"""A hand-built GPT-2 of two layers whose heads' patterns are known."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from probing.models.language_model import LanguageModel

WORDS = ("start", "a", "b", "c", "d", "e", "f")
TOKENS, PLACES, WIDTH, HEAD = len(WORDS), 12, 48, 16
WORD, PLACE, BEFORE, ANSWER = 0, TOKENS, TOKENS + PLACES, 2 * TOKENS + PLACES  # first coordinate of each part
SHARP = 400.0  # score of the key that is wanted; others have 0
TEXT = "start a b c d a b c d"
HEADS = {"previous": (0, 0), "idle": (0, 1), "induction": (1, 0), "constant": (1, 1)}


def planted_model() -> LanguageModel:
    """Return a model with four live heads, and a third idle one in each layer.

    Head 0.0 attends to the token before and copies it; 0.1 attends evenly. Head 1.0 attends to the token after the same
    token (induction) and copies it to where the output is read. Head 1.1 attends to the token before, but its value is
    the same vector whatever is there, so nothing depends on its pattern.
    """
    config = GPT2Config(
        vocab_size=TOKENS,
        n_positions=PLACES,
        n_embd=WIDTH,
        n_layer=2,
        n_head=3,
        n_inner=4,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    model: Any = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        model.transformer.wte.weight.copy_(_rows(TOKENS, WORD))
        model.transformer.wpe.weight.copy_(_rows(PLACES, PLACE))
        model.lm_head.weight.copy_(4 * _rows(TOKENS, ANSWER))
        one, two = (block.attn for block in model.transformer.h)
        _before(one, 0)
        _copy(one, 0, WORD, BEFORE)
        _match(two, 0, WORD, BEFORE)
        _copy(two, 0, WORD, ANSWER)
        _before(two, 1)
        two.c_attn.bias[2 * WIDTH + HEAD] = 1.0  # the value of head 1: a constant
        two.c_proj.weight[HEAD, ANSWER] = 1.0
    vocabulary = {word: i for i, word in enumerate(WORDS)} | {"?": TOKENS}
    inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    return LanguageModel.from_modules(model, tokenizer, name="planted", check=False)


def _rows(count: int, first: int) -> Tensor:
    """Return `count` unit vectors along the coordinates from `first` on."""
    return torch.eye(WIDTH)[first : first + count]


def _before(attention: Any, head: int) -> None:
    """Let a head's query at place i match the key at place i - 1."""
    for place in range(1, PLACES):
        attention.c_attn.weight[PLACE + place, head * HEAD + place - 1] = SHARP
    for place in range(PLACES):
        attention.c_attn.weight[PLACE + place, WIDTH + head * HEAD + place] = 1.0


def _match(attention: Any, head: int, query: int, key: int) -> None:
    """Let a head's query, a token in the part `query`, match keys with the same token in the part `key`."""
    for token in range(TOKENS):
        attention.c_attn.weight[query + token, head * HEAD + token] = SHARP
        attention.c_attn.weight[key + token, WIDTH + head * HEAD + token] = 1.0


def _copy(attention: Any, head: int, source: int, target: int) -> None:
    for token in range(TOKENS):
        attention.c_attn.weight[source + token, 2 * WIDTH + head * HEAD + token] = 1.0
        attention.c_proj.weight[head * HEAD + token, target + token] = 1.0
