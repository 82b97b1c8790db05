"""Dictionaries of Gemma Scope: `params.npz` of the first, `params.safetensors` (and `config.json`) of the second."""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
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
)
from probing.dictionaries.formats._sites import site_of
from probing.errors import UntrustedFile

_ARRAYS = {"w_enc": "encoder", "b_enc": "encoder_bias", "w_dec": "decoder", "b_dec": "decoder_bias"}
_ARRAYS |= {"threshold": "threshold", "affine_skip_connection": "skip"}
_MOST_HEADER = 10_000
# What zipfile and NumPy raise for a file that is no npz.
_DAMAGE: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    SyntaxError,
)
_DAMAGE += (IndexError, AttributeError, NotImplementedError, RuntimeError, OverflowError)
# Part of a folder's name, and the module whose states are meant there, for the first and for the second.
_FIRST = {"-mlp": "post_feedforward_layernorm.output", "-att": "self_attn.o_proj.input", "": "output"}
_SECOND = {
    "resid_post": "output",
    "attn_out": "self_attn.o_proj.input",
    "mlp_out": "post_feedforward_layernorm.output",
    "transcoder": "pre_feedforward_layernorm.output",
}


def read(file: Path, *, allow_pickle_weights: bool = False, norm_factor: float | None = None) -> Dictionary:
    """Read a dictionary of Gemma Scope from its file of weights: JumpReLU, with no bias subtracted.

    Names of folders say which states are meant (`gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`), unless
    there is a `config.json`.

    Raises:
        UntrustedFile: a `.npz` has arrays of Python objects.
        UnsupportedFormat: the architecture or an array is not known.
        InputError: a file is damaged.
    """
    given = _read_npz(file) if file.suffix == ".npz" else read_safetensors(file)
    weights = {name.lower(): array for name, array in given.items()}
    if unknown := sorted(set(weights) - set(_ARRAYS)):
        raise not_supported(file, "array", ", ".join(unknown), ", ".join(_ARRAYS))
    if (decoder := weights.get("w_dec")) is not None and decoder.ndim == 3:
        raise not_supported(file, "architecture", "cross-layer transcoder", "dictionaries of one output")
    if "threshold" not in weights:
        raise no_dictionary(file, "no threshold", needed="the threshold of every latent")
    beside = file.parent / "config.json"
    config = read_settings(beside) if file.suffix != ".npz" and beside.is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise not_supported(file, "architecture", config["architecture"], "jump_relu")
    hook, target, model, declared = _place(file, config)
    skip = weights.get("affine_skip_connection")
    is_transcoder = target is not None
    _check_settings(file, config, weights, is_transcoder)
    if skip is not None and not is_transcoder:
        raise no_dictionary(file, "a skip connection", needed="a transcoder, by config.json or its folder's name")
    arrays: dict[str, Any] = {ours: weights.get(name) for name, ours in _ARRAYS.items()}
    arrays["skip"] = None if skip is None else np.ascontiguousarray(skip.T)  # theirs is (d, d_out)
    return made(
        file,
        arrays,
        architecture="jumprelu" if not is_transcoder else "transcoder" if skip is None else "skip_transcoder",
        subtract_decoder_bias=False,
        model=model,
        site=site_of(hook),
        target=site_of(target),
        declared=declared,
        source="gemma_scope",
    )


def _check_settings(file: Path, config: Mapping[str, Any], weights: Mapping[str, Floats], is_transcoder: bool) -> None:
    """Refuse settings that are of another type than they have, or contradict the weights.

    Raises:
        UnsupportedFormat: the type is not known.
        InputError: the settings do not fit the weights.
    """
    kind = config.get("type", "transcoder" if is_transcoder else "sae")
    if kind not in ("sae", "transcoder"):
        raise not_supported(file, "type", kind, "sae, transcoder")
    if (kind == "transcoder") != is_transcoder:
        raise no_dictionary(file, f"type {kind}", needed="a transcoder where hf_hook_point_out is another place")
    check_sizes(file, config, {"width": size_of(weights.get("w_enc"), 1)})
    has_skip = "affine_skip_connection" in weights
    if flag(file, config, "affine_connection", has_skip) != has_skip:
        needed = "affine_skip_connection where config.json has affine_connection"
        raise no_dictionary(file, f"affine_skip_connection: {has_skip}", needed=needed)
    for name in ("hf_hook_point_in", "hf_hook_point_out", "model_name"):
        if name in config and text_in(config, name) is None:
            raise no_dictionary(file, f"{name} {config[name]!r}"[:100], needed=f"{name}: a text")
    l0 = config.get("l0", 1)
    if isinstance(l0, bool) or not isinstance(l0, int | float) or not l0 > 0:
        raise no_dictionary(file, f"l0 {l0!r}"[:100], needed="l0: a positive number")


def _place(file: Path, config: Mapping[str, Any]) -> tuple[str | None, str | None, str | None, dict[str, Any]]:
    """Return the module of the states, that of a transcoder's outputs, the model, and what is declared."""
    path = file.resolve().parent.as_posix()
    declared: dict[str, Any] = {}
    if match := re.search(r"average_l0_(\d{1,6})", path):
        declared["l0"] = int(match[1])
    if isinstance(config.get("l0"), int | float) and not isinstance(config["l0"], bool):
        declared["l0"] = config["l0"]
    layer, model = re.search(r"layer_(\d{1,4})", path), text_in(config, "model_name")
    hook, target = text_in(config, "hf_hook_point_in"), text_in(config, "hf_hook_point_out")
    if file.suffix == ".npz":
        hook, target, model = _first(path, layer)
    elif hook is None and layer:
        kind = next((kind for kind in _SECOND if kind in path), None)
        hook = f"model.layers.{layer[1]}.{_SECOND[kind]}" if kind else None
        target = f"model.layers.{layer[1]}.post_feedforward_layernorm.output" if kind == "transcoder" else None
    return hook, None if target == hook else target, model, declared | ({"hook": hook} if hook else {})


def _first(path: str, layer: re.Match[str] | None) -> tuple[str | None, str | None, str | None]:
    """Return module, output and model of the first Gemma Scope, from the names of folders."""
    match = re.search(r"gemma-scope-(\d+b)-(pt|it)-?(res|mlp|att|transcoders)?", path)
    model = None if match is None else f"google/gemma-2-{match[1]}{'-it' if match[2] == 'it' else ''}"
    kind = (match[3] if match else None) or "res"
    if re.search(r"/embedding(/|$)", path):
        return "embed_tokens", None, model  # trained on embeddings before the model scales them, as our site is
    if layer is None:
        return None, None, model
    block = f"model.layers.{layer[1]}"
    if kind == "transcoders":
        return f"{block}.pre_feedforward_layernorm.output", f"{block}.post_feedforward_layernorm.output", model
    return f"{block}.{_FIRST[f'-{kind}' if kind != 'res' else '']}", None, model


def _read_npz(file: Path) -> dict[str, Floats]:
    """Return the arrays of an npz file, none of which may hold Python objects.

    Raises:
        UntrustedFile: one does.
        InputError: it is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                _check_member(file, archive, member)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name], dtype=np.float32) for name in arrays.files}
    except OSError:
        raise
    except _DAMAGE as error:
        raise no_dictionary(file, f"{type(error).__name__}: {error}"[:200], needed="an npz file of arrays") from None


def _check_member(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Check the header of an array, before memory is set aside for it."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(stream, max_header_size=_MOST_HEADER)
        header = stream.tell()
    if dtype.hasobject:
        raise UntrustedFile(
            "this file holds Python objects, which are never unpickled",
            needed="arrays of numbers",
            found=f"{member.filename}: {dtype}",
            where=str(file),
            next_step="save the arrays as numbers: np.savez(file, W_enc=…)",
        )
    if dtype.kind not in "fiu" or math.prod(shape) * dtype.itemsize != member.file_size - header:
        needed = f"{member.filename}: as many bytes as the shape says"
        raise no_dictionary(file, f"{dtype} {shape}, {member.file_size - header:,} bytes"[:200], needed=needed)
