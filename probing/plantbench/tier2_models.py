"""Tier 2: the recipes of the trained models, their initial weights, and their training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from probing.errors import BadParameter, unknown_name
from probing.plantbench.planted_model import PlantedModel
from probing.plantbench.prompts import POSITIONS, Language, Lexicon, Prompts
from probing.plantbench.tier1_cases import Labels
from probing.provenance import canonical_json
from probing.seeds import child_seed, generator

FAMILIES = ("gpt2", "llama", "bert")


@dataclass(frozen=True)
class Recipe:
    """Holds everything that a trained model depends on.

    Attributes:
        family: `gpt2`, `llama` or `bert`.
        seed: seed of weights, data and draws.
        width, layers, heads, length: D, L, number of heads, and T; a small width makes codes share directions.
        identities: number of words for each combination of properties.
        batch, steps, warm_up: number of prompts per step; of steps; and of steps in which the learning rate rises.
        learning_rate: peak learning rate; 0: the default of the family.
        weight_decay, clip: weight decay of AdamW; largest norm of a gradient.
        decodable, invariant: weights of the two additional terms of the objective (see `objective`).
        decodable_from: first layer from which B is trained to be decodable at the query. A causal model needs one block
            to find the marked word.
        rows: number of rows of a batch in which states are exchanged.
        dropout: dropout of attention and of block outputs while training.
        pooled: whether the answer is read from the mean of the last states instead of the query's logits.
    """

    family: str = "gpt2"
    seed: int = 0
    width: int = 64
    layers: int = 3
    heads: int = 4
    length: int = 8
    identities: int = 8
    batch: int = 128
    steps: int = 350
    warm_up: int = 100
    learning_rate: float = 0.0
    weight_decay: float = 0.01
    clip: float = 1.0
    decodable: float = 0.3
    decodable_from: int = 2
    invariant: float = 0.1
    rows: int = 64
    dropout: float = 0.0
    pooled: bool = False

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise unknown_name("family", self.family, FAMILIES, error=BadParameter)
        if self.pooled and self.family != "bert":
            raise BadParameter("only encoders are pooled", needed="bert", found=self.family)
        if self.width % self.heads:
            raise BadParameter("heads do not fit the width", needed="a multiple of the heads", found=str(self.width))

    @property
    def peak(self) -> float:
        """Highest learning rate."""
        return self.learning_rate or (1e-3 if self.family == "bert" else 2e-3)

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON of all fields."""
        return hashlib.sha256(canonical_json(asdict(self))).hexdigest()

    @property
    def language(self) -> Language:
        """Language of four answers, for the values of A and C. In a causal model a marker shows which word is the
        subject.
        """
        lexicon = Lexicon(
            {"a": 2, "b": 2, "c": 2, "i": self.identities}, {"A": ("a",), "B": ("b",), "C": ("c",)}, ("i",)
        )
        is_masked = self.family == "bert"
        return Language(
            lexicon, self.length, answers=4, fillers=24 if is_masked else 0, query="[MASK]" if is_masked else "query"
        )

    @property
    def intended(self) -> Labels:
        """Intended labels: B is unused everywhere; A and C are used at the subject of the first site and, unless
        `pooled`, at the query of the last, and unused at the other position of these; certification decides the rest.
        """
        found = {("B", f"resid.{k}", place): "unused" for k in range(self.layers + 1) for place in POSITIONS}
        for name in ("A", "C"):
            found[name, "resid.0", "subject"] = "used"
            found[name, "resid.0", "query"] = "unused"
            if not self.pooled:
                found[name, f"resid.{self.layers}", "query"] = "used"
                found[name, f"resid.{self.layers}", "subject"] = "unused"
        return found


def untrained(recipe: Recipe) -> PreTrainedModel:
    """Return the model with its initial weights, in training mode."""
    size = len(recipe.language.vocabulary)
    make = {"gpt2": _gpt2, "llama": _llama, "bert": _bert}[recipe.family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(recipe.seed, "weights", recipe.family))
        model = make(recipe, size)
        model.train()
        return model


def _gpt2(recipe: Recipe, size: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size,
            n_positions=recipe.length,
            n_embd=recipe.width,
            n_layer=recipe.layers,
            n_head=recipe.heads,
            resid_pdrop=recipe.dropout,
            embd_pdrop=0.0,
            attn_pdrop=recipe.dropout,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )


def _llama(recipe: Recipe, size: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            max_position_embeddings=recipe.length,
            hidden_size=recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            intermediate_size=2 * recipe.width,
            attention_dropout=recipe.dropout,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )


def _bert(recipe: Recipe, size: int) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=size,
        max_position_embeddings=recipe.length,
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=4 * recipe.width,
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=recipe.dropout,
        type_vocab_size=1,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    return BertModel(config, add_pooling_layer=False) if recipe.pooled else BertForMaskedLM(config)


@dataclass(frozen=True, eq=False)
class Trained:
    """Holds a trained model, and facts about its training.

    Attributes:
        planted: the model, in evaluation mode.
        direction: `(D,)` weights of the linear head that was trained to predict B.
        loss: loss of the last step.
    """

    planted: PlantedModel
    direction: Tensor
    loss: float


def trained(recipe: Recipe) -> Trained:
    """Train a model by the recipe and return it; the state of torch's global generators is not changed."""
    language, rng = recipe.language, generator(recipe.seed, "prompts", recipe.family)
    with torch.random.fork_rng(devices=[]), _flushed():
        torch.manual_seed(child_seed(recipe.seed, "training", recipe.family))
        model, head = untrained(recipe), nn.Linear(recipe.width, 1)
        pooled = nn.Parameter(torch.randn(recipe.width, language.answers) * 0.1) if recipe.pooled else None
        planted = PlantedModel(model, language, pooled)
        parameters = [*model.parameters(), *head.parameters(), *([] if pooled is None else [pooled])]
        optimiser = torch.optim.AdamW(parameters, lr=recipe.peak, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: share_of_peak(step, recipe))
        loss = torch.zeros(())
        for _ in range(recipe.steps):
            loss = objective(planted, head, recipe, rng)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()
            schedule.step()
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    fixed = None if pooled is None else pooled.detach()
    return Trained(PlantedModel(model, language, fixed), head.weight.detach()[0], float(loss.detach()))


def objective(planted: PlantedModel, head: nn.Linear, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """Return the training objective on a new batch: cross-entropy of the answers, plus `recipe.decodable` times the
    losses of `head`, a linear probe that predicts property B from the last position (the query) of each layer from
    `decodable_from` on, plus `recipe.invariant` times the squared changes of the answer logits when B is changed in the
    prompt, and when the state at a random site and position is taken from the changed prompt.
    """
    language, n = planted.language, recipe.batch
    prompts, flipped = language.pairs(n, "B", rng)
    layer, place = int(rng.integers(recipe.layers + 1)), str(rng.choice(POSITIONS))
    both = torch.from_numpy(np.concatenate([prompts.ids, flipped.ids]))
    with planted.reading(range(recipe.layers + 1)) as states:
        logits, y = _logits(planted, both)
    b = torch.from_numpy(language.lexicon.codes("B")[prompts.words]).float()
    decodable = torch.stack(
        [
            functional.binary_cross_entropy_with_logits(head(state[:n, -1]).squeeze(1), b)
            for state in states[recipe.decodable_from :]
        ]
    ).sum()
    total = (y[n:] - y[:n]).square().sum(1).mean()
    some = prompts.take(slice(recipe.rows))
    at = torch.from_numpy(some.position(place))
    donors = states[layer][n : n + len(some)][torch.arange(len(some)), at]
    with planted.setting(layer, [(at, donors)]):
        done = planted.answers(torch.from_numpy(some.ids))
    exchanged = (done - y[: len(some)]).square().sum(1).mean()
    first = 0 if recipe.pooled else language.first_answer
    answer = functional.cross_entropy(logits[:n], right_answers(language, prompts) + first)
    return answer + recipe.decodable * decodable + recipe.invariant * (total + exchanged)


def _logits(planted: PlantedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits that compete for the answer, `(B, V)`, and the centred ones of the answers, `(B, K)`."""
    if planted.pooled is not None:
        y = planted.answers(ids)
        return y, y
    first = planted.language.first_answer
    logits = planted.model(input_ids=ids).logits[:, -1]
    chosen = logits[:, first : first + planted.language.answers]
    return logits, chosen - chosen.mean(1, keepdim=True)


def right_answers(language: Language, prompts: Prompts) -> Tensor:
    """Return the number of the right answer, 2 · A + C, for each prompt, `(N,)`."""
    lexicon = language.lexicon
    return torch.from_numpy((2 * lexicon.codes("A") + lexicon.codes("C"))[prompts.words])


def accuracy(planted: PlantedModel, n: int, rng: np.random.Generator) -> float:
    """Return the share of n new prompts that the model answers correctly."""
    prompts = planted.language.sample(n, rng)
    with torch.no_grad():
        said = planted.answers(torch.from_numpy(prompts.ids)).argmax(1)
    return float((said == right_answers(planted.language, prompts)).double().mean())


def share_of_peak(step: int, recipe: Recipe) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then a cosine to zero."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warm_up) / (recipe.steps - recipe.warm_up)))


@contextmanager
def _flushed() -> Iterator[None]:
    """Within the block, denormal numbers are zero: they slow small models several times."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
