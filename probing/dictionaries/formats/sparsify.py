"""Dictionaries of sparsify: `cfg.json` beside `sae.safetensors`, in a folder named after its module."""

from __future__ import annotations

from pathlib import Path

from probing.dictionaries.dictionary import Dictionary
from probing.dictionaries.formats._files import (
    check_sizes,
    made,
    no_dictionary,
    not_supported,
    read_safetensors,
    read_settings,
    size_of,
    text_in,
    transposed,
    whole_number,
)
from probing.dictionaries.formats._sites import site_of

_ARRAYS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip")


def read(file: Path, *, allow_pickle_weights: bool = False, norm_factor: float | None = None) -> Dictionary:
    """Read a dictionary of sparsify from its file of weights.

    Latents are the k largest of each row after a ReLU; b_dec is subtracted first, except in a transcoder.

    Raises:
        UnsupportedFormat: activation or an array is not known.
        InputError: a file is damaged.
    """
    config, weights = read_settings(file.parent / "cfg.json"), read_safetensors(file)
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise not_supported(file, "activation function", activation, "topk, groupmax")
    if config.get("signed"):  # of early versions: the k largest by absolute value
        raise not_supported(file, "activation function", "signed topk", "topk, groupmax")
    if unknown := sorted(set(weights) - set(_ARRAYS)):
        raise not_supported(file, "array", ", ".join(unknown), ", ".join(_ARRAYS))
    encoder, is_transcoder, skip = weights.get("encoder.weight"), bool(config.get("transcode")), weights.get("W_skip")
    own = whole_number(file, "d_in", config.get("d_in"))
    if encoder is not None and encoder.shape[1:] != (own,):
        raise no_dictionary(file, f"encoder.weight {encoder.shape}", needed=f"(m, {own}), as cfg.json says")
    if config.get("num_latents"):  # 0: expansion_factor times the width
        check_sizes(file, config, {"num_latents": size_of(encoder, 0)})
    if bool(config.get("skip_connection")) != (skip is not None):
        raise no_dictionary(file, f"W_skip: {skip is not None}", needed="W_skip where cfg.json has skip_connection")
    folder, above = file.parent.resolve().name, file.parent.resolve().parent / "config.json"
    model = text_in(read_settings(above), "model") if above.is_file() else None
    k = whole_number(file, "k", config.get("k"))
    output = site_of(folder, model)
    inner = None if output is None or not output.startswith("resid.") else f"resid.{int(output[6:]) - 1}"
    return made(
        file,
        {
            "encoder": transposed(encoder),
            "encoder_bias": weights.get("encoder.bias"),
            "decoder": weights.get("W_dec"),
            "decoder_bias": weights.get("b_dec"),
            "skip": skip,
        },
        architecture="topk" if not is_transcoder else "transcoder" if skip is None else "skip_transcoder",
        k=k,
        grouped=activation == "groupmax",
        subtract_decoder_bias=not is_transcoder,
        model=model,
        site=inner if is_transcoder else output,  # a transcoder reads what its module is given
        target=output if is_transcoder else None,
        declared={"k": k, "hook": folder},
        source="sparsify",
    )
