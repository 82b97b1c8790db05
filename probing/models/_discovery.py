"""Finds the parts of a Transformer without knowing its family: the block list, the final norm, the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from probing.errors import BadParameter, UnsupportedModel

FINAL_NORMS = (
    "ln_f", "norm", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "layer_norm", "ln_final"
)  # fmt: skip


Sides = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Side:
    """What of a model is read.

    Attributes:
        trunk: the part that is run for states: the model without its head.
        part: the part that has the blocks, `path` inside the trunk: all of it, or the decoder of an encoder-decoder.
        name: `encoder` or `decoder` of an encoder-decoder; else None.
        start_id: the piece that the decoder of an encoder-decoder is given first; else None.
        n_heads: attention heads of a block; None: unknown.
    """

    trunk: nn.Module
    part: nn.Module
    path: str
    name: Sides | None
    start_id: int | None
    n_heads: int | None


def find_side(model: nn.Module, side: Sides | None) -> Side:
    """The part that makes states: the model without its head, or one side of an encoder-decoder (None: the encoder).

    Raises:
        BadParameter: a side of a model that has one only, or an unknown one.
        UnsupportedModel: a decoder that nothing says how to start.
    """
    trunk: nn.Module = getattr(model, "base_model", model)
    config = getattr(model, "config", None)
    heads = getattr(getattr(trunk, "config", None), "num_attention_heads", None)
    if side not in (None, "encoder", "decoder"):
        raise BadParameter("unknown side", needed="encoder or decoder", found=repr(side))
    if not getattr(config, "is_encoder_decoder", False):
        if side is not None:
            raise BadParameter(
                "only an encoder-decoder has sides", needed="a model such as T5 or BART", found=type(model).__name__,
                next_step="leave the side out",
            )  # fmt: skip
        return Side(trunk, trunk, "", None, None, heads)
    if side != "decoder":
        encoder: nn.Module = trunk.get_encoder()  # type: ignore[operator]
        return Side(encoder, encoder, "", "encoder", None, getattr(encoder.config, "num_attention_heads", None))
    decoder: nn.Module = trunk.get_decoder()  # type: ignore[operator]
    settings = (config, getattr(model, "generation_config", None))
    known = [getattr(setting, "decoder_start_token_id", None) for setting in settings]
    start = next((value for value in known if value is not None), None)
    if not isinstance(start, int):
        raise UnsupportedModel(
            "nothing says how this decoder starts", found=repr(start), where=type(model).__name__,
            needed="decoder_start_token_id in config.json or generation_config.json",
            next_step="set it in the configuration, or read the encoder",
        )  # fmt: skip
    path = next(name for name, module in trunk.named_modules() if module is decoder)
    heads = getattr(config, "decoder_attention_heads", getattr(decoder.config, "num_attention_heads", None))
    return Side(trunk, decoder, path, "decoder", start, heads)


def find_blocks(trunk: nn.Module, family: str) -> tuple[str, nn.ModuleList]:
    """The path and the list of blocks: the longest list of same-class modules that lies in no other such list.

    Raises:
        UnsupportedModel: there is none.
    """
    found: dict[str, nn.ModuleList] = {}
    for path, module in trunk.named_modules():
        nested = any(path.startswith(outer + ".") for outer in found)
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1 and not nested:
            found[path] = module
    if not found:
        raise UnsupportedModel(
            f"models of the family {family!r} are not read", needed="a list of Transformer blocks",
            found=f"none in {type(trunk).__name__}",
            next_step="read it by module paths alone (sites NAME=PATH), or choose another model",
        )  # fmt: skip
    path = max(found, key=lambda name: len(found[name]))
    return path, found[path]


def find_final_norm(trunk: nn.Module, blocks_path: str) -> tuple[str, nn.Module] | None:
    """The norm beside the block list, known by its name; the self-check proves that it is the final one."""
    parent_path = blocks_path.rpartition(".")[0]
    for name, child in trunk.get_submodule(parent_path).named_children():
        if name in FINAL_NORMS and "norm" in type(child).__name__.lower():
            return f"{parent_path}.{name}" if parent_path else name, child
    return None


def first_tensor(output: object) -> object:
    """A module's hidden states: its output, or the first of a tuple, or the first value of a mapping."""
    if isinstance(output, Mapping):
        return next(iter(output.values()), None)
    return output[0] if isinstance(output, tuple | list) and output else output
