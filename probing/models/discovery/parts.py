"""Finds the part of a model to read, the configuration of that part, and the output head. A *piece* is a token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers.models.auto import modeling_auto

from probing.errors import BadParameter, ProbingError, UnsupportedModel

Sides = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Side:
    """Describes the part of a model that is read: all of it, its encoder or its decoder.

    Attributes:
        trunk: the module that is run to get states: the model without its head.
        part: the module that contains the blocks, at `path` in the trunk: all of it, or the decoder of an
            encoder-decoder.
        name: `encoder` or `decoder` of an encoder-decoder; else None.
        start_id: id of the piece that the decoder of an encoder-decoder is given first; None for other models.
    """

    trunk: nn.Module
    part: nn.Module
    path: str
    name: Sides | None
    start_id: int | None


@contextmanager
def refusing(family: str, doing: str, where: str) -> Iterator[None]:
    """Within the block, raise `UnsupportedModel` in place of any error of another library, as a model of an unknown
    kind may cause.
    """
    try:
        yield
    except ProbingError:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"models of the family {family!r} are not read: an error while {doing}",
            where=where,
            needed="a Transformer of text that runs on ids and a mask",
            found=f"{type(error).__name__}: {error}".splitlines()[0][:200],
            next_step="read it by module paths alone (sites NAME=MODULE.PATH), or choose another model",
        ) from error


def find_side(model: nn.Module, side: Sides | None) -> Side:
    """Return the part whose states are read: the model without its head, or one side of an encoder-decoder (None: the
    encoder).

    Raises:
        BadParameter: the name of the side is unknown, or the model has only one side.
        UnsupportedModel: the configuration does not name the start piece of the decoder.
    """
    trunk: nn.Module = getattr(model, "base_model", model)
    config = getattr(model, "config", None)
    if side not in (None, "encoder", "decoder"):
        raise BadParameter("unknown side", needed="encoder or decoder", found=repr(side))
    if not getattr(config, "is_encoder_decoder", False):
        if side is not None:
            raise BadParameter(
                "only an encoder-decoder has sides",
                needed="a model such as T5 or BART",
                found=type(model).__name__,
                next_step="leave the side out",
            )
        return Side(trunk, trunk, "", None, None)
    if side != "decoder":
        encoder = _side_of(trunk, "encoder")
        return Side(encoder, encoder, "", "encoder", None)
    decoder = _side_of(trunk, "decoder")
    settings = (config, getattr(model, "generation_config", None))
    known = [getattr(setting, "decoder_start_token_id", None) for setting in settings]
    start = next((value for value in known if value is not None), None)
    if not isinstance(start, int):
        raise UnsupportedModel(
            "nothing says how this decoder starts",
            found=repr(start),
            where=type(model).__name__,
            needed="decoder_start_token_id in config.json or generation_config.json",
            next_step="set it in the configuration, or read the encoder",
        )
    path = next(name for name, module in trunk.named_modules() if module is decoder)
    return Side(trunk, decoder, path, "decoder", start)


def _side_of(trunk: nn.Module, name: Sides) -> nn.Module:
    """Return the encoder or the decoder of an encoder-decoder.

    Raises:
        UnsupportedModel: there is none of this name.
    """
    try:
        found = getattr(trunk, f"get_{name}")()
    except (AttributeError, NotImplementedError, TypeError):
        found = getattr(trunk, name, None)
    if not isinstance(found, nn.Module) or found is trunk:
        raise UnsupportedModel(
            f"this encoder-decoder has no {name} of its own",
            needed=f"a model with get_{name}()",
            found=type(found).__name__,
            where=type(trunk).__name__,
            next_step="choose another model",
        )
    return found


def text_config(module: nn.Module) -> Any:
    """Return the text part of a module's configuration (the whole one if it has no separate text part); None if the
    module has no configuration.
    """
    config = getattr(module, "config", None)
    try:
        return config.get_text_config()  # type: ignore[union-attr]
    except (AttributeError, ValueError, TypeError):  # no configuration of transformers, or several texts in it
        return config


def inner_config(root: nn.Module, path: str) -> Any:
    """Return the configuration of the module at a path, or of the nearest module around it that has one."""
    parts = path.split(".") if path else []
    for end in range(len(parts), -1, -1):
        found = text_config(root.get_submodule(".".join(parts[:end])))
        if found is not None:
            return found
    return None


def number_of(config: Any, *names: str) -> int | None:
    """Return the value of the first of these names that is a positive integer in a configuration; None if there is
    none.
    """
    values = (_value_of(config, name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _value_of(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # a number that is another one in each layer, which some configurations refuse to name
        return None


def attending_layers(config: Any) -> tuple[bool, ...]:
    """Return, for each layer, whether the configuration calls it softmax attention; empty if the configuration does not
    list kinds of layers.
    """
    listed = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    return tuple("attention" in str(kind) and "linear" not in str(kind) for kind in listed)


def head_kind(model: nn.Module, trunk: nn.Module) -> str | None:
    """Return `masked` or `causal`, the kind of language-model head of the model; None if it has no such head or is an
    encoder-decoder.
    """
    name = type(model).__name__
    if model is trunk or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    if name in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values():
        return "masked"
    causal = (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return "causal" if any(name in names.values() for names in causal) else None
