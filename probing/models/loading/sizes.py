"""Checks the sizes in a model's configuration before anything is allocated, and refuses impossible ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probing.errors import UnsupportedModel
from probing.files.strict_json import strict_json

_COUNTED = re.compile(r".*(layers?|blocks?|experts?|heads?|depths?)$")
_MOST_COUNTED = 20_000  # of layers, experts, heads: each is a module, or part of one
_POSITIVE = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "num_key_value_heads")
_MOST_DEPTH = 6
_MOST_BYTES = 64 << 20


def check_sizes(config: Any, build: Callable[[], nn.Module], *, dtype: torch.dtype, device: str, name: str) -> None:
    """Refuse a configuration whose model cannot be built on this machine.

    Args:
        config: configuration of the model.
        build: a function that builds the model; it is called on the meta device, so nothing is allocated.
        dtype: compute dtype.
        device: device that the weights would be on.
        name: name of the model, for messages.

    Raises:
        UnsupportedModel: a size is not positive or impossibly large, or the weights need more memory than the machine
            has.
    """
    check_numbers(config.to_dict(), name)
    try:
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in build().parameters())
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error).lower() and "too large" not in str(error).lower():
            return  # a model that is not built without memory is built with it, or fails there
        raise _absurd(name, f"{str(error).splitlines()[0][:150]}", "sizes that can be counted") from None
    except Exception:  # as above
        return
    needed, room = weights * dtype.itemsize, _memory(device)
    if room is not None and needed > room:
        raise _absurd(
            name,
            f"{weights:,} weights, which take {needed / 2**30:,.1f} GiB in {str(dtype).removeprefix('torch.')}",
            f"no more than the {room / 2**30:,.1f} GiB of this machine",
        )


def check_file(name: str) -> None:
    """Refuse a local folder whose config.json names impossible sizes.

    Raises:
        UnsupportedModel: see `check_numbers`.
    """
    file = Path(name).expanduser() / "config.json"
    if file.is_file() and file.stat().st_size <= _MOST_BYTES:
        with suppress(ValueError):  # what is no JSON is refused elsewhere
            check_numbers(strict_json(file.read_bytes()), name)


def check_numbers(config: Any, name: str) -> None:
    """Refuse counts and widths of a text model that are impossible: zero, negative or far too large.

    Raises:
        UnsupportedModel: a number is impossible; the message names it and its allowed range.
    """
    for path, key, value in _numbers(config, "", 0):
        is_of_text = all("text" in part for part in path.split(".")[:-1])
        if key in _POSITIVE and value <= 0 and is_of_text:
            raise _absurd(name, f"{path}{key} = {value}", "sizes above zero")
        if _COUNTED.match(key) and value > _MOST_COUNTED:
            raise _absurd(name, f"{path}{key} = {value:,}", f"at most {_MOST_COUNTED:,}")


def _numbers(config: Any, path: str, depth: int) -> Iterator[tuple[str, str, int]]:
    """Yield the whole numbers of a configuration and of those inside it."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, int) and not isinstance(value, bool):
            yield path, key, value
        elif isinstance(value, dict) and depth < _MOST_DEPTH:
            yield from _numbers(value, f"{path}{key}.", depth + 1)


def _memory(device: str) -> int | None:
    """Return the bytes of memory; None: not known."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _absurd(name: str, found: str, needed: str) -> UnsupportedModel:
    return UnsupportedModel(
        "the configuration asks for a model that cannot be built here",
        needed=needed,
        found=found,
        where=name,
        next_step="check config.json, choose a smaller model, or a dtype and machine that hold it",
    )
