"""Tiny random models of every architecture of text that the installed transformers has, built without a list of ours.

A configuration is shrunk by the meaning that names of its numbers have all over transformers (`hidden_size`,
`num_hidden_layers`, …); `OWN` has what a few families need beside that.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, WIDTH, HEADS, LAYERS = 300, 32, 4, 2
_KEY_VALUE, _HEAD_DIM = -1, -2  # numbers that an attempt says
_MOST_PARAMETERS = 45_000_000
# Which class stands for a model type: the first of these that has it.
REGISTRIES = (
    "MASKED_LM",
    "CAUSAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "PRETRAINING",
    "SEQUENCE_CLASSIFICATION",
    "QUESTION_ANSWERING",
    "TOKEN_CLASSIFICATION",
    "TEXT_ENCODING",
)
# The first rule whose pattern is the whole name says the number; None: left as it is.
_RULES: tuple[tuple[str, int | None], ...] = (
    (r".*(hidden_layers|num_layers|n_layers?|_layers|depth|num_blocks|n_blocks)|layers", LAYERS),
    (r".*(key_value_heads|kv_heads|n_head_kv|key_value_attention_heads)", _KEY_VALUE),
    (r".*(_heads|n_heads?|attention_head)", HEADS),
    (r".*(head_dim|head_size|d_kv|kv_channels|attention_head_size|headdim)", _HEAD_DIM),
    (r".*(experts_per_tok|moe_topk|moe_top_k|moe_k|experts_topk|topk|top_k)", 1),
    (r".*(n_group|topk_group|num_groups|expert_groups|shared_experts|n_groups|ngroups)", 1),
    (r".*(experts|num_experts|expert_num)", 4),
    (r".*(lora_rank|_rank)", 8),
    (r"(vocab_size|.*_vocab_size|n_token|vocabulary_size|n_words)", VOCABULARY),
    (r".*(intermediate_size|ffn_dim|d_ff|d_inner|n_inner|hidden_dim|ffn_hidden_size|ffn_size|mlp_dim)", 48),
    (
        r".*(hidden_size|d_model|n_embd|embed_dim|d_embed|embedding_size|word_embed_proj_dim|emb_dim|lru_width"
        r"|projection_dim|output_dim|width|hidden_sizes?|^dim)",
        WIDTH,
    ),
    (r"dim", WIDTH),
    (
        r".*(max_position_embeddings|n_positions|max_seq_len.*|max_sequence_length|seq_length|n_ctx|max_source_positions"
        r"|max_target_positions|context_length)",
        128,
    ),
    (r"rotary_dim", _HEAD_DIM),
    (r".*(state_size|d_state|mamba_d_state|ssm_state_size)", 8),
    (r"(mamba_)?chunk_size", 16),
    (r".*(image_size)", 32),
    (r".*(patch_size)", 8),
)
_TWICE = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}
_PIECES = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY}
_GEMMA_3N = (
    _TWICE | _PIECES | {"num_kv_shared_layers": 2, "intermediate_size": 48, "activation_sparsity_pattern": [0.0] * 4}
)
_GEMMA_4 = _TWICE | _PIECES | {"global_head_dim": 8}
_QUANTISER = {"codec_config": {"upsample_groups": WIDTH}}
_MAP = {"vocabulary_map": {"<image>": 250, "IMGIMGAEZ": 200, "IMGIMGBFZ": 201, "IMGIMGCGZ": 202, "IMGIMGDHZ": 203}}
_QWEN_4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 2,
    "hc_lowrank": 8,
    "ngram_vocab_size_base": 300,
    "split_ngram_parts": 2,
}
# What a family needs beside the rules: sizes under names of its own, or numbers that must agree.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "chameleon": _MAP,
    "emu3": _MAP,
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    },
    "csm": _QUANTISER,
    "kyutai_speech_to_text": _QUANTISER,
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 32},
    "esmc": {"num_key_value_heads": HEADS},
    "gemma3n_text": _GEMMA_3N,
    "gemma4_text": _GEMMA_4,
    "gemma4": {"text_config": _GEMMA_4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl_text": {"head_dim": 8},
    "hunyuan_vl": {"text_config": {"head_dim": 8}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "led": {"attention_window": [8] * LAYERS},
    "lilt": {"channel_shrink_ratio": 2},
    "longformer": {"attention_window": [8] * LAYERS},
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": HEADS},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "mobilebert": {"hidden_size": 64, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "pegasus_x": {"block_size": 8},
    "perceiver": {"d_latents": WIDTH, "num_latents": 8, "num_self_attends_per_block": 2},
    "qwen4_exp_text": _QWEN_4,
    "qwen4_exp": {"text_config": _QWEN_4},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "feed_forward_size": 48,
        "local_attn_chunk_length": 8,
        "is_decoder": False,
    },
    "step3p7": {"text_config": {"sliding_window": 16}},
    "xlstm": {"num_blocks": 2, "qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"n_mamba_heads": 8, "mamba_headdim": 8},
    "cpmant": {"init_std": 0.02},
    "deepseek_v2": {"num_key_value_heads": HEADS, "num_experts_per_tok": 1, "n_routed_experts": 4},
    "kimi_linear": {"num_key_value_heads": HEADS, "num_expert_group": 1, "topk_group": 1, "num_experts": 4},
    "glm5_next_text": {"num_key_value_heads": HEADS, "index_kpool": 1},
    "glm5_next": {"text_config": {"num_key_value_heads": HEADS, "index_kpool": 1}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 290, "audio_start_token_id": 291},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 290, "audio_start_token_id": 291},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}, "hidden_size_per_layer_input": 0},
}


@dataclass(frozen=True)
class Attempt:
    """One way to shrink: families differ in what their numbers must agree with.

    Attributes:
        key_value_heads, head_dim: of attention.
        sections: of rotary positions in three axes, which sum up to half of what is rotated.
        adds_sections: also where the default configuration is silent on them.
    """

    key_value_heads: int = 2
    head_dim: int = WIDTH // HEADS
    sections: tuple[int, ...] = (2, 1, 1)
    adds_sections: bool = False


ATTEMPTS = (
    Attempt(),
    Attempt(key_value_heads=HEADS),
    Attempt(sections=(1, 1, 0)),
    Attempt(head_dim=16, sections=(4, 2, 2)),
    Attempt(key_value_heads=HEADS, head_dim=16, sections=(4, 2, 2)),
    Attempt(adds_sections=True),
    Attempt(sections=(1, 1, 0), adds_sections=True),
)


def shrunk(kind: type, own: Mapping[str, Any], attempt: Attempt) -> dict[str, Any]:
    """Arguments of a tiny configuration of this class."""
    values: dict[str, Any] = {}
    given = _default(kind)
    for name, value in vars(given).items() if given is not None else ():
        if isinstance(value, transformers.PreTrainedConfig):
            inner = shrunk(type(value), own.get(name, {}), attempt)
            values[name] = ({"model_type": value.model_type} if value.model_type else {}) | inner
        elif isinstance(value, dict) and name.startswith("rope") and not own.get(name):
            if rope := _rope(value, attempt):
                values[name] = rope
        elif isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
            small = _small(name, attempt)
            if small is not None and (small < value or "head" in name):
                values[name] = small
            elif name.endswith(("_token_id", "_token_index")) and value >= VOCABULARY:
                values[name] = VOCABULARY - 1 - sum(map(ord, name)) % 30  # no piece of ours
    kinds = list(dict.fromkeys(getattr(given, "layer_types", None) or ()))
    if len(kinds) > 1 and "layer_types" in vars(given) and "layer_types" not in own:
        values |= {name: max(LAYERS, len(kinds)) for name in values if name in ("num_hidden_layers", "num_layers")}
        values["layer_types"] = kinds
    values |= {name: value for name, value in own.items() if not _is_part(given, name)}
    return {name: value for name, value in values.items() if value is not None}


def _is_part(given: Any, name: str) -> bool:
    return isinstance(getattr(given, name, None), transformers.PreTrainedConfig)


def _rope(given: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
    """Rotary parameters with small sections; empty where they have none."""
    found = dict(given)
    for name, value in given.items():
        if name == "mrope_section":
            found[name] = list(attempt.sections)
        elif isinstance(value, dict):
            found[name] = _rope(value, attempt) or value
    if "rope_theta" in given and attempt.adds_sections:
        found["mrope_section"] = list(attempt.sections)
    return {} if found == given else found


def _default(kind: type) -> Any:
    try:
        return kind()
    except Exception:  # a configuration that has no default is built from what it is given
        return None


def _small(name: str, attempt: Attempt) -> int | None:
    found = next((number for pattern, number in _RULES if re.fullmatch(pattern, name)), None)
    return attempt.key_value_heads if found == _KEY_VALUE else attempt.head_dim if found == _HEAD_DIM else found


@cache
def architectures() -> dict[str, str]:
    """For each model type, the class that stands for it."""
    found: dict[str, str] = {}
    for names in [
        *(getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in REGISTRIES),
        modeling_auto.MODEL_MAPPING_NAMES,
    ]:
        for kind, listed in names.items():
            for name in (listed,) if isinstance(listed, str) else listed:
                if kind not in found and _is_of(name, kind):
                    found[kind] = name
    return dict(sorted(found.items()))


def _is_of(name: str, kind: str) -> bool:
    """Whether the class is configured by this model type as a whole, not by a part of it."""
    cls = model_class(name)
    return cls is not None and getattr(cls, "config_class", None) in (None, CONFIG_MAPPING[kind])


@cache
def model_class(name: str) -> Any:
    """The class of this name; None where this environment cannot import it."""
    try:
        found = getattr(transformers, name, None)
        return found if inspect.isclass(found) and issubclass(found, nn.Module) else None
    except Exception:  # an optional package that is not installed
        return None


def tiny_model(kind: str) -> Any:
    """A small model of this type, with random weights from a fixed seed, in eval mode, that runs on its plain input.

    Raises:
        Exception: what the first attempt raised, where none runs.
    """
    first: Exception | None = None
    tried: list[dict[str, Any]] = []
    for attempt in ATTEMPTS:
        try:
            arguments = shrunk(CONFIG_MAPPING[kind], OWN.get(kind, {}), attempt)
            if arguments in tried:
                continue
            tried.append(arguments)
            model = _built(kind, arguments)
            if takes_text(type(model)):
                plain_pass(model, torch.tensor([[(11 + 7 * i) % 200 + 20 for i in range(7)]]))
            return model
        except Exception as error:
            first = first or error
    assert first is not None
    raise first


def _built(kind: str, arguments: Mapping[str, Any]) -> Any:
    cls, config_class = model_class(architectures()[kind]), CONFIG_MAPPING[kind]
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(config_class(**arguments)).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters: the configuration is not shrunk")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = cls(config_class(**arguments))
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data += 0.02 * torch.randn(parameter.shape).to(parameter.dtype)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight.data[module.padding_idx] = 0  # as training leaves it
    return model.float().eval()


def takes_text(cls: Any) -> bool:
    """Whether forward has `input_ids`."""
    return "input_ids" in inspect.signature(cls.forward).parameters


def plain_pass(model: Any, ids: torch.Tensor) -> Any:
    """A forward pass over nothing but text."""
    given: dict[str, Any] = {"input_ids": ids}
    if "use_cache" in inspect.signature(model.forward).parameters:
        given["use_cache"] = False
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids
    with torch.inference_mode():
        return model(**given)


def all_types() -> Iterator[str]:
    """Model types."""
    yield from architectures()
