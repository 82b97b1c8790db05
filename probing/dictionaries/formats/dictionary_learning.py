"""Dictionaries of dictionary_learning: `config.json` beside `ae.pt`, a pickle, which is read with the flag alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from probing.dictionaries.dictionary import Dictionary
from probing.dictionaries.formats._files import (
    Floats,
    check_sizes,
    made,
    no_dictionary,
    not_supported,
    read_settings,
    size_of,
    text_in,
    transposed,
    whole_number,
)
from probing.dictionaries.formats._sites import site_of
from probing.files.pickles import read_pickle, refused_pickle

_LINEAR = {"encoder.weight": "encoder", "encoder.bias": "encoder_bias", "decoder.weight": "decoder"}
_PLAIN = {"W_enc": "encoder", "b_enc": "encoder_bias", "W_dec": "decoder", "b_dec": "decoder_bias"}
_TOP = {"k": "", "threshold": "threshold"}
_GATES = {"mag_bias": "encoder_bias", "gate_bias": "gate_bias", "r_mag": "gate_scale", "decoder_bias": "decoder_bias"}
# Our architecture, whether b_dec is subtracted, and our names of arrays, for each class.
_CLASSES: dict[str, tuple[str, bool, dict[str, str]]] = {
    "AutoEncoder": ("standard", True, {**_LINEAR, "bias": "decoder_bias"}),
    "AutoEncoderNew": ("standard", False, {**_LINEAR, "decoder.bias": "decoder_bias"}),
    "GatedAutoEncoder": ("gated", True, {**_LINEAR, **_GATES}),
    "JumpReluAutoEncoder": ("jumprelu", False, {**_PLAIN, "threshold": "threshold"}),
    "AutoEncoderTopK": ("topk", True, {**_LINEAR, **_TOP, "b_dec": "decoder_bias"}),
    "BatchTopKSAE": ("batchtopk", True, {**_LINEAR, **_TOP, "b_dec": "decoder_bias"}),
    "MatryoshkaBatchTopKSAE": ("batchtopk", True, {**_PLAIN, **_TOP, "group_sizes": ""}),
}


def read(file: Path, *, allow_pickle_weights: bool = False, norm_factor: float | None = None) -> Dictionary:
    """Read a dictionary of dictionary_learning from its file of weights, as `load_dictionary` there does.

    BatchTopK dictionaries have one threshold, learned in training, and no number of latents of a row.

    Raises:
        UntrustedFile: `allow_pickle_weights` is not set.
        UnsupportedFormat: the class or an array is not known.
        InputError: a file is damaged.
    """
    if not allow_pickle_weights:
        raise refused_pickle(file, "dictionary")
    config = read_settings(file.parent / "config.json")
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise no_dictionary(file.parent / "config.json", "no trainer", needed="a trainer with its dict_class")
    name = trainer.get("dict_class")
    if not isinstance(name, str) or name not in _CLASSES:
        raise not_supported(file, "class", name, ", ".join(_CLASSES))
    architecture, subtracts, names = _CLASSES[name]
    weights = _weights(file)
    if unknown := sorted(set(weights) - set(names)):
        raise not_supported(file, "array", ", ".join(unknown), ", ".join(names))
    arrays: dict[str, Any] = {names[key]: value for key, value in weights.items() if names[key]}
    if "encoder.weight" in names:  # of torch's Linear: (out, in)
        arrays |= {key: transposed(arrays.get(key)) for key in ("encoder", "decoder")}
    encoder = arrays.get("encoder")
    check_sizes(file, trainer, {"activation_dim": size_of(encoder, 0), "dict_size": size_of(encoder, 1)})
    declared: dict[str, Any] = {}
    k = None
    if "k" in names:
        saved = weights.get("k")
        k = whole_number(file, "k", trainer.get("k", None if saved is None else float(saved.flat[0])))
        if saved is not None and (saved.size != 1 or float(saved.flat[0]) != k):
            raise no_dictionary(file, f"k {saved} in the weights"[:100], needed=f"k {k}, as config.json says")
        declared["k"] = k
        _threshold(file, architecture, arrays, declared)
    if name == "AutoEncoder":
        _normalize_decoder(arrays)
    model, hook = text_in(trainer, "lm_name"), _hook(trainer)
    return made(
        file,
        arrays,
        architecture=architecture,
        k=k if architecture == "topk" else None,
        subtract_decoder_bias=subtracts,
        model=model,
        site=site_of(hook, model),
        declared=declared | ({"target_l0": trainer["target_l0"]} if trainer.get("target_l0") else {}) | {"hook": hook},
        source="dictionary_learning",
    )


def _weights(file: Path) -> dict[str, Floats]:
    import torch

    values = read_pickle(file, "dictionary")
    if not isinstance(values, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and not value.is_complex() and not value.is_sparse
        for key, value in values.items()
    ):
        raise no_dictionary(file, "no tensors by their names", needed="the state_dict of a dictionary")
    try:
        return {key: value.detach().float().numpy() for key, value in values.items()}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise no_dictionary(file, str(error)[:200], needed="tensors of plain numbers") from None


def _threshold(file: Path, architecture: str, arrays: dict[str, Any], declared: dict[str, Any]) -> None:
    """Put the threshold where it is used; AutoEncoderTopK saves one that its encoding does not use."""
    threshold = arrays.pop("threshold", None)
    if threshold is None and architecture == "topk":
        return
    if np.size(threshold) != 1 or threshold is None:
        raise no_dictionary(file, f"threshold of shape {np.shape(threshold)}", needed="one threshold")
    if architecture == "topk":
        declared["threshold"] = float(threshold.reshape(()))
    else:
        arrays["threshold"] = threshold.reshape(1)


def _normalize_decoder(arrays: dict[str, Any]) -> None:
    """Give latents the units of unit directions, as `AutoEncoder.from_pretrained` does."""
    encoder, decoder, bias = (arrays.get(name) for name in ("encoder", "decoder", "encoder_bias"))
    if encoder is None or decoder is None or bias is None or decoder.ndim != 2:
        return
    norms = np.linalg.norm(decoder, axis=1)
    if norms.shape != encoder.shape[1:] or norms.shape != bias.shape or not (norms > 0).all():
        return
    arrays |= {"encoder": encoder * norms, "encoder_bias": bias * norms, "decoder": decoder / norms[:, None]}


def _hook(trainer: dict[str, Any]) -> str | None:
    """Return the place that the settings name; `resid_post_layer_3` and a layer alone are the output of a block."""
    name, layer = text_in(trainer, "submodule_name"), trainer.get("layer")
    if name is None:
        is_layer = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
        return f"blocks.{layer}.hook_resid_post" if is_layer else None
    match = re.fullmatch(r"(resid_post|resid_pre|mlp_out|attn_out|attention_out)_layer_?(\d{1,5})", name)
    kind = match[1].replace("attention", "attn") if match else ""
    return f"blocks.{int(match[2])}.hook_{kind}" if match else name
