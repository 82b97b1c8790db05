"""Random causal models of the families that circuits know, and small models with planted circuits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from probing.circuits.traces import TokenPairs
from probing.models.language_model import LanguageModel
from probing.models.splitting import Layer, SplitModel, SplitTransformer
from tests.samples.tiny_models import _noisy, byte_tokenizer

_SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
_GROUPED = _SIZE | {"num_key_value_heads": 2}
_GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
_OPT = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 64,
}
KNOWN: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8},
    "gpt_neox": _SIZE,
    "opt": _OPT,
    "gemma2": _GROUPED | {"head_dim": 8, "sliding_window": 3},
    "gemma3_text": _GROUPED | {"head_dim": 8, "sliding_window": 3},
}
REFUSED: dict[str, dict[str, Any]] = {
    "opt": _OPT | {"do_layer_norm_before": False},
    "olmo2": _SIZE,
    "falcon": _SIZE,
    "bloom": {"n_layer": 2, "hidden_size": 16, "n_head": 4},
}


def random_model(family: str, config: dict[str, Any]) -> LanguageModel:
    """A model of a family with random weights of a size that shows every path."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=261, **config))
        return LanguageModel.from_modules(_noisy(model).eval(), byte_tokenizer(), name=family)


@cache
def split(family: str) -> SplitTransformer:
    """A random model of a known family, split."""
    return SplitTransformer(random_model(family, KNOWN[family]))


def random_pairs(count: int = 4, length: int = 6, seed: int = 0) -> TokenPairs:
    """Pairs of random tokens that differ in one, each its own group."""
    random = np.random.default_rng(seed)
    clean = random.integers(0, 261, (count, length))
    corrupted = clean.copy()
    corrupted[:, 2] = (corrupted[:, 2] + 7) % 261
    answers = np.tile([[5, 9]], (count, 1))
    return TokenPairs(clean.tolist(), corrupted.tolist(), answers, np.arange(count))


@dataclass(frozen=True)
class PlantedHead:
    """A head that moves `reads · x` of the first token to the last, as `writes`; if `asks` is given, times the sigmoid
    of `asks · x` at the last token.
    """

    reads: tuple[float, ...]
    writes: tuple[float, ...]
    asks: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """A model planned by hand: heads and an MLP for each block, and what the metric reads from the last token, behind a
    norm if `has_norm`.
    """

    name: str
    heads: tuple[tuple[PlantedHead, ...], ...]
    mlps: tuple[Callable[[Any], list[Any]], ...]
    reads: tuple[float, ...]
    has_norm: bool = False


def _axis(number: int, size: float = 1.0) -> tuple[float, ...]:
    return tuple(size if k == number else 0.0 for k in range(WIDTH))


def _nothing(x: Any) -> list[Any]:
    return [0.0 * x[0]] * WIDTH


WIDTH = 6
IDLE = PlantedHead(_axis(5), _axis(5))
# The first token has its sign in 0 and its size in 1; noise of every token is in 5.
CANCELLING = Plan(  # m0 writes 0.6 of the sign for the logits, and m1 takes it away again
    "cancelling",
    ((PlantedHead(_axis(0), _axis(2)), IDLE), (IDLE, IDLE)),
    (
        lambda x: [*_nothing(x)[:3], 0.6 * x[2], *_nothing(x)[4:]],
        lambda x: [*_nothing(x)[:3], -1.0 * x[3], *_nothing(x)[4:]],
    ),
    (0.0, 0.0, 1.0, 1.0, 0.0, 0.0),
)
REDUNDANT = Plan(  # either of two heads suffices for m1
    "redundant",
    ((PlantedHead(_axis(0), _axis(2)), PlantedHead(_axis(0), _axis(3))), (IDLE, IDLE)),
    (_nothing, lambda x: [*_nothing(x)[:4], 2.0 * ((x[2] + x[3]) > -1.0), *_nothing(x)[5:]]),
    _axis(4),
)
NORMED = Plan(  # a1.h1 asks for what a0.h0 brought; the logits are read behind a norm, which a0.h1 makes large
    "normed",
    (
        (PlantedHead(_axis(0), _axis(2, 2.0)), PlantedHead(_axis(0, -1.5), _axis(4))),
        (IDLE, PlantedHead(_axis(1), _axis(3), _axis(2, 2.0))),
    ),
    (_nothing, _nothing),
    (0.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    has_norm=True,
)
SHARED = Plan(  # two heads write 0.6 and 0.4 of the sign for the logits
    "shared",
    ((PlantedHead(_axis(0), _axis(2, 0.6)), PlantedHead(_axis(0), _axis(2, 0.4))), (IDLE, IDLE)),
    (_nothing, _nothing),
    _axis(2),
)
PLANS = (CANCELLING, REDUNDANT, NORMED)


class Planted(SplitModel):
    """Runs a plan in batches, as a split model."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.name, self.identity = plan, plan.name, {"plan": plan.name}
        self.layers = [Layer(len(heads), len(heads)) for heads in plan.heads]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[embedded(token) for token in row] for row in ids.tolist()])

    def heads(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        found = []
        for h, head in enumerate(self.plan.heads[layer]):
            read = v[h % len(v)] @ torch.tensor(head.reads)
            moved = torch.zeros_like(read)
            moved[:, -1] = read[:, 0]
            asked = 1.0 if head.asks is None else torch.sigmoid(q[h % len(q)] @ torch.tensor(head.asks))
            found.append(moved * asked)
        return torch.stack(found, -1)[..., None]

    def write(self, layer: int, z: torch.Tensor) -> torch.Tensor:
        return torch.stack([z[:, :, h] * torch.tensor(one.writes) for h, one in enumerate(self.plan.heads[layer])])

    def mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([one.float() for one in self.plan.mlps[layer](x.movedim(-1, 0))], -1)

    def measure(self, x: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        last = x[:, -1]
        if self.plan.has_norm:
            last = last / (last.square().mean(-1, keepdim=True) + 0.1).sqrt()
        return last @ torch.tensor(self.plan.reads)


def embedded(token: int) -> list[float]:
    """The state of a token: an even number has the sign −1, an odd one 1; other digits are its size and noise."""
    sign, size, noise = token % 2 * 2.0 - 1.0, 1.0 + token // 2 % 10 / 20, token // 20 / 10 - 0.5
    return [sign, size, 0.0, 0.0, 0.0, noise]


def planted_pairs(count: int = 80, seed: int = 0) -> TokenPairs:
    """Pairs of three tokens in whose first the sign differs."""
    random = np.random.default_rng(seed)
    rest = random.integers(0, 100, (count, 2)) * 2
    first = random.integers(0, 100, count) * 2
    clean = np.column_stack([first + 1, rest]).tolist()
    corrupted = np.column_stack([first, rest]).tolist()
    values = {"sign": (["plus"] * count, ["minus"] * count)}
    return TokenPairs(clean, corrupted, np.zeros((count, 2), dtype=np.int64), np.arange(count), values)
