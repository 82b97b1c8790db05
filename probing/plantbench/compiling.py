"""Compiles a circuit into the weights of a GPT-2 or a Llama."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from probing.plantbench.circuit import (
    HEAD_WIDTH,
    HEADS,
    LAYERS,
    SHARPNESS,
    UNITS,
    WIDTH,
    Circuit,
    Head,
    Unit,
    basis,
)


def gpt2(circuit: Circuit, *, length: int, seed: int) -> GPT2LMHeadModel:
    """Return the model, in evaluation mode; its biases are zero, its norms' gains 1."""
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
    """Return the model, in evaluation mode; its norms' gains are 1, and no rotary angle matters to its heads."""
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
            _set_llama_units(
                model, circuit, directions, [unit for unit in circuit.units if unit.layer == layer], layer
            )
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


def _set_llama_units(
    model: Any, circuit: Circuit, directions: Tensor, units: list[Unit], layer: int
) -> None:
    mlp = model.model.layers[layer].mlp
    for j, unit in enumerate(units):
        reads = torch.from_numpy(circuit.coordinates(unit.reads)).float()
        writes = torch.from_numpy(circuit.coordinates(unit.writes)).float()
        factor, size = (unit.times, 1.0) if unit.times else ("const", _CONST)
        mlp.gate_proj.weight[j] = directions @ reads
        mlp.up_proj.weight[j] = directions[:, circuit.index(factor)]
        mlp.down_proj.weight[:, j] = circuit.norm**2 / size * (directions @ writes)
