"""Dictionaries of SAELens: `cfg.json` (of version 6, and flat ones before) beside `sae_weights.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probing.dictionaries.dictionary import Dictionary
from probing.dictionaries.formats._files import (
    Floats,
    check_sizes,
    flag,
    made,
    no_dictionary,
    not_supported,
    read_safetensors,
    read_settings,
    size_of,
    text_in,
    whole_number,
)
from probing.dictionaries.formats._sites import site_of

# Our architecture, and whether there is a threshold, for each of theirs.
_ARCHITECTURES = {
    "standard": ("standard", False),
    "gated": ("gated", False),
    "topk": ("topk", False),
    "jumprelu": ("jumprelu", True),
    "batchtopk": ("batchtopk", True),  # checkpoints of training; for use they are written as jumprelu
    "matryoshka_batchtopk": ("batchtopk", True),
    "transcoder": ("transcoder", False),
    "skip_transcoder": ("skip_transcoder", False),
    "jumprelu_transcoder": ("transcoder", True),
    "jumprelu_skip_transcoder": ("skip_transcoder", True),
}
_ARRAYS = {
    "W_enc": "encoder",
    "b_enc": "encoder_bias",
    "b_mag": "encoder_bias",
    "W_dec": "decoder",
    "b_dec": "decoder_bias",
    "threshold": "threshold",
    "topk_threshold": "threshold",
    "log_threshold": "threshold",
    "b_gate": "gate_bias",
    "r_mag": "gate_scale",
    "W_skip": "skip",
    "scaling_factor": "",
}
_DECLARED = ("l0", "target_l0", "context_size", "prepend_bos", "dataset_path", "neuronpedia_id", "sae_lens_version")
_OLD_NAMES = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn": "activation"}


def read(file: Path, *, allow_pickle_weights: bool = False, norm_factor: float | None = None) -> Dictionary:
    """Read a dictionary of SAELens from its file of weights.

    Raises:
        UnsupportedFormat: architecture, activation, normalisation or an array is not known.
        InputError: a file is damaged.
    """
    config = _flat(read_settings(file.parent / "cfg.json"))
    theirs, weights = config.get("architecture", "standard"), read_safetensors(file)
    activation, options = config.get("activation", "relu"), config.get("activation_fn_kwargs") or {}
    if activation == "topk" and theirs == "standard":
        theirs, activation = "topk", "relu"
        config.setdefault("k", options.get("k") if isinstance(options, dict) else None)
    if not isinstance(theirs, str) or theirs not in _ARCHITECTURES:
        raise not_supported(file, "architecture", theirs, ", ".join(_ARCHITECTURES))
    if activation not in ("relu", "topk"):
        raise not_supported(file, "activation function", activation, "relu, topk")
    if unknown := sorted(set(weights) - set(_ARRAYS)):
        raise not_supported(file, "array", ", ".join(unknown), ", ".join(_ARRAYS))
    ours, has_threshold = _ARCHITECTURES[theirs]
    _check_architecture(file, theirs, config, weights)
    arrays = _arrays(file, config, weights, has_threshold)
    k = whole_number(file, "k", config.get("k")) if ours == "topk" else None
    factor = _norm_factor(file, config, norm_factor)
    hook, model = text_in(config, "hook_name"), text_in(config, "model_name")
    training = config.get("training_architecture_details")
    known = (training if isinstance(training, dict) else {}) | config
    declared = {name: known[name] for name in _DECLARED if known.get(name) is not None}
    declared |= {"k": known["k"]} if known.get("k") is not None and ours in ("topk", "batchtopk", "jumprelu") else {}
    declared |= {"hook": hook} if hook else {}
    declared |= {} if factor is None else {"norm_factor": factor}
    is_transcoder = ours.endswith("transcoder")
    return made(
        file,
        _folded(arrays, factor),
        architecture=ours,
        k=k,
        subtract_decoder_bias=not is_transcoder and flag(file, config, "apply_b_dec_to_input", True),
        normalization=_normalization(file, config),
        model=model,
        site=site_of(hook, model),
        target=site_of(text_in(config, "hook_name_out"), model) if is_transcoder else None,
        declared=declared,
        source="saelens",
    )


def _check_architecture(file: Path, theirs: str, config: Mapping[str, Any], weights: Mapping[str, Floats]) -> None:
    """Refuse arrays that an architecture does not use, which would change what it encodes, and other sizes than those
    of the settings.

    Raises:
        InputError: the settings do not fit the weights.
    """
    used = {"W_enc", "W_dec", "b_dec", "scaling_factor"}
    used |= {"b_gate", "r_mag", "b_mag"} if theirs == "gated" else {"b_enc"}
    used |= {"threshold", "log_threshold"} if "jumprelu" in theirs else set()
    used |= {"threshold", "topk_threshold"} if "batchtopk" in theirs else set()
    used |= {"W_skip"} if "skip" in theirs else set()
    if foreign := sorted(set(weights) - used):
        raise no_dictionary(file, f"{', '.join(foreign)} beside architecture {theirs}", needed=", ".join(sorted(used)))
    encoder, decoder = weights.get("W_enc"), weights.get("W_dec")
    sizes = {"d_in": size_of(encoder, 0), "d_sae": size_of(encoder, 1)}
    check_sizes(file, config, sizes | ({"d_out": size_of(decoder, 1)} if "transcoder" in theirs else {}))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings and those of their metadata in one mapping, by the names of version 6."""
    metadata = config.get("metadata")
    whole = {**(metadata if isinstance(metadata, dict) else {}), **config}
    return {_OLD_NAMES.get(name.removesuffix("_str"), name): value for name, value in whole.items()}


def _arrays(
    file: Path, config: Mapping[str, Any], weights: Mapping[str, Floats], has_threshold: bool
) -> dict[str, Any]:
    given: dict[str, Any] = {_ARRAYS[name]: array for name, array in weights.items() if _ARRAYS[name]}
    if "log_threshold" in weights:
        given["threshold"] = np.exp(weights["log_threshold"])
    if "topk_threshold" in weights:
        given["threshold"] = weights["topk_threshold"].reshape(1)
    if has_threshold and "threshold" not in given:
        raise no_dictionary(file, "no threshold", needed=f"a threshold of {config.get('architecture')}")
    if config.get("hook_head_index") is not None:
        raise not_supported(file, "place", f"hook_head_index {config['hook_head_index']}", "states of all heads")
    scale, decoder = weights.get("scaling_factor"), given.get("decoder")
    if scale is not None and decoder is not None and not np.allclose(scale, 1):
        if not config.get("finetuning_scaling_factor") or scale.shape != decoder.shape[:1]:
            raise not_supported(file, "array", "scaling_factor", "finetuning_scaling_factor in cfg.json")
        given["decoder"] = decoder * scale[:, None]  # latents are multiplied by it before they are decoded
    if config.get("rescale_acts_by_decoder_norm") is True and decoder is not None and "encoder" in given:
        norms = np.linalg.norm(decoder, axis=1) if decoder.ndim == 2 else np.ones(())
        if norms.shape != given["encoder"].shape[1:]:
            raise no_dictionary(file, f"W_dec {decoder.shape}, W_enc {given['encoder'].shape}", needed="(m, d), (d, m)")
        given["encoder"] = given["encoder"] * norms
        given["encoder_bias"] = given["encoder_bias"] * norms if "encoder_bias" in given else None
        given["decoder"] = decoder / np.where(norms > 0, norms, 1)[:, None]
    return given


def _normalization(file: Path, config: Mapping[str, Any]) -> str:
    value = config.get("normalize_activations")
    if value in (None, False, True, "none", "expected_average_only_in"):  # the last by a factor in the weights
        return "none"
    if value not in ("layer_norm", "constant_norm_rescale"):
        needed = "none, layer_norm, constant_norm_rescale, expected_average_only_in"
        raise not_supported(file, "normalisation", value, needed)
    return str(value)


def _norm_factor(file: Path, config: Mapping[str, Any], given: float | None) -> float | None:
    """Return the factor that states were multiplied by in training and that the weights do not contain; or None."""
    if config.get("normalize_activations") not in (True, "expected_average_only_in"):
        return None
    beside = file.parent / "activation_scaler.json"
    factor = given
    if factor is None and beside.is_file():
        factor = read_settings(beside).get("scaling_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        error = not_supported(
            file,
            "normalisation",
            "expected_average_only_in",
            "the factor that states were multiplied by, √d / their mean norm in training",
        )
        error.next_step = "give it as norm_factor (--norm-factor)"
        raise error
    return float(factor)


def _folded(arrays: dict[str, Any], factor: float | None) -> dict[str, Any]:
    """Return weights that encode a state x as the given ones encode `factor` x, and decode in the units of x."""
    if factor is None:
        return arrays
    scaled = {"encoder": factor, "decoder": 1 / factor, "decoder_bias": 1 / factor}
    return {name: a * np.float32(scaled.get(name, 1)) if a is not None else a for name, a in arrays.items()}
