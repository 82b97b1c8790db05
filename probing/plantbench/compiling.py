"""Circuit: a model described by slots (orthonormal directions of the residual stream), attention heads and hidden
units; and its compilation into a GPT-2 or Llama.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from probing.seeds import generator

Floats = NDArray[np.float64]

WIDTH, LAYERS, HEADS, HEAD_WIDTH, UNITS = 128, 4, 4, 32, 64
SHARPNESS = 40.0  # of attention to the flagged word: the others get less than 1e-13


@dataclass(frozen=True)
class Head:
    """Describes an attention head that copies slots from the word whose key slot is set, or from all words equally.

    Attributes:
        layer: number of the block.
        key: the slot that draws attention; "" spreads it evenly over the words so far.
        copies: triples (slot read at the other word, slot written at this word, gain), at most HEAD_WIDTH.
    """

    layer: int
    key: str
    copies: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Unit:
    """Describes hidden units of an MLP: relu(Σ weight · slot) over `reads`, multiplied by the slot `times` if it is
    given, is added to the slots in `writes`, each with its weight.

    Slots are read after the block's norm, and the output is multiplied by `Circuit.norm` to undo its scaling.
    """

    layer: int
    reads: Mapping[str, float]
    writes: Mapping[str, float]
    times: str = ""


@dataclass(frozen=True)
class Circuit:
    """Holds everything that the weights of a compiled model are made from: V pieces, S slots, K answers.

    Attributes:
        slots: names of the slots; each gets a direction of its own.
        pieces: `(V, S)` embeddings.
        positions: `(T, S)` position codes; None: the family has no position embeddings.
        heads: attention heads of all layers.
        units: hidden units of all layers.
        answers: `(K, S)` weights by which the unembedding reads slots for each answer.
        first_answer: id of the first answer.
        norm: typical root mean square of the query's state.
    """

    slots: tuple[str, ...]
    pieces: Floats
    positions: Floats | None
    heads: tuple[Head, ...]
    units: tuple[Unit, ...]
    answers: Floats
    first_answer: int
    norm: float

    def index(self, slot: str) -> int:
        """Return the column of a slot."""
        return self.slots.index(slot)

    def coordinates(self, slots: Mapping[str, float]) -> Floats:
        """Return a weighted sum of slots as coordinates, `(S,)`."""
        found = np.zeros(len(self.slots))
        for name, size in slots.items():
            found[self.index(name)] = size
        return found


def basis(n_slots: int, seed: int) -> Floats:
    """Return `(WIDTH, S)` orthonormal columns, all orthogonal to the vector of ones, so that the centring of LayerNorm
    does not change them.
    """
    drawn = generator(seed, "basis").standard_normal((WIDTH, n_slots))
    whole, _ = np.linalg.qr(np.column_stack([np.ones(WIDTH), drawn]))
    return np.asarray(whole[:, 1:])


def gpt2(circuit: Circuit, *, length: int, seed: int) -> GPT2LMHeadModel:
    """Compile a circuit into a GPT-2 model in evaluation mode, with zero biases and norm gains of 1, and return it."""
    config = GPT2Config(
        vocab_size=len(circuit.pieces),
        n_positions=length,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=UNITS,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        model: Any = GPT2LMHeadModel(config)
    directions = torch.from_numpy(basis(len(circuit.slots), seed)).float()
    with torch.no_grad():
        _blank(model)
        model.transformer.wte.weight.copy_(torch.from_numpy(circuit.pieces).float() @ directions.T)
        if circuit.positions is not None:
            model.transformer.wpe.weight.copy_(torch.from_numpy(circuit.positions).float() @ directions.T)
        for layer in range(LAYERS):
            for number, head in enumerate(head for head in circuit.heads if head.layer == layer):
                _set_head(model, circuit, directions, head, number)
            _set_units(model, circuit, directions, [unit for unit in circuit.units if unit.layer == layer], layer)
        rows = torch.from_numpy(circuit.answers).float() @ directions.T
        model.lm_head.weight[circuit.first_answer : circuit.first_answer + len(rows)] = rows
    found: GPT2LMHeadModel = model.eval()
    return found


def _blank(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)


def _set_head(model: Any, circuit: Circuit, directions: Tensor, head: Head, number: int) -> None:
    attention = model.transformer.h[head.layer].attn
    joint, output = attention.c_attn.weight, attention.c_proj.weight  # (D, 3 D) and (D, D): inputs by outputs
    first = number * HEAD_WIDTH
    if head.key:
        joint[:, first] = math.sqrt(SHARPNESS) * directions[:, circuit.index("const")]
        joint[:, WIDTH + first] = math.sqrt(SHARPNESS) * directions[:, circuit.index(head.key)]
    for j, (source, target, gain) in enumerate(head.copies):
        joint[:, 2 * WIDTH + first + j] = directions[:, circuit.index(source)]
        output[first + j] = gain * directions[:, circuit.index(target)]


def _set_units(model: Any, circuit: Circuit, directions: Tensor, units: list[Unit], layer: int) -> None:
    mlp = model.transformer.h[layer].mlp
    for j, unit in enumerate(units):
        reads = torch.from_numpy(circuit.coordinates(unit.reads)).float()
        writes = torch.from_numpy(circuit.coordinates(unit.writes)).float()
        mlp.c_fc.weight[:, j] = directions @ reads
        mlp.c_proj.weight[j] = circuit.norm * (directions @ writes)


_CONST = 2.0  # of the slot `const`: a unit without a factor is multiplied by it


def llama(circuit: Circuit, *, length: int, seed: int) -> LlamaForCausalLM:
    """Compile a circuit into a Llama model in evaluation mode, with norm gains of 1, and return it; rotary angles do
    not affect its heads.
    """
    config = LlamaConfig(
        vocab_size=len(circuit.pieces),
        max_position_embeddings=length,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=UNITS,
        hidden_act="relu",
        attention_dropout=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
    )
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(config)
    directions = torch.from_numpy(basis(len(circuit.slots), seed)).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight.copy_(torch.from_numpy(circuit.pieces).float() @ directions.T)
        for layer in range(LAYERS):
            for number, head in enumerate(head for head in circuit.heads if head.layer == layer):
                _set_llama_head(model, circuit, directions, head, number)
            _set_llama_units(model, circuit, directions, [unit for unit in circuit.units if unit.layer == layer], layer)
        rows = torch.from_numpy(circuit.answers).float() @ directions.T
        model.lm_head.weight[circuit.first_answer : circuit.first_answer + len(rows)] = rows
    found: LlamaForCausalLM = model.eval()
    return found


def _set_llama_head(model: Any, circuit: Circuit, directions: Tensor, head: Head, number: int) -> None:
    attention = model.model.layers[head.layer].self_attn
    first = number * HEAD_WIDTH
    if head.key:
        slow = first + HEAD_WIDTH // 2 - 1  # with slow + HEAD_WIDTH / 2 the rotary pair of the lowest frequency
        attention.q_proj.weight[slow] = math.sqrt(SHARPNESS) * directions[:, circuit.index("const")]
        attention.k_proj.weight[slow] = math.sqrt(SHARPNESS) * directions[:, circuit.index(head.key)]
    for j, (source, target, gain) in enumerate(head.copies):
        attention.v_proj.weight[first + j] = directions[:, circuit.index(source)]
        attention.o_proj.weight[:, first + j] = gain * directions[:, circuit.index(target)]


def _set_llama_units(model: Any, circuit: Circuit, directions: Tensor, units: list[Unit], layer: int) -> None:
    mlp = model.model.layers[layer].mlp
    for j, unit in enumerate(units):
        reads = torch.from_numpy(circuit.coordinates(unit.reads)).float()
        writes = torch.from_numpy(circuit.coordinates(unit.writes)).float()
        factor, size = (unit.times, 1.0) if unit.times else ("const", _CONST)
        mlp.gate_proj.weight[j] = directions @ reads
        mlp.up_proj.weight[j] = directions[:, circuit.index(factor)]
        mlp.down_proj.weight[:, j] = circuit.norm**2 / size * (directions @ writes)
