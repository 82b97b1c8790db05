"""Checks the files of a model folder: they are complete, contain no code, no pickles unless allowed, and no impossible
sizes; warns of unused weights.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from probing.errors import RemoteCodeRefused, UnsupportedModel, UnusedWeights
from probing.files.strict_json import strict_json

_POINTER = b"version https://git-lfs"
_MOST_HEADER = 100 << 20  # as much as safetensors itself reads
_INDEX = "model.safetensors.index.json"
_COUNTED = re.compile(r".*(layers?|blocks?|experts?|heads?|depths?)$")
_MOST_COUNTED = 20_000  # of layers, experts, heads: each is a module, or part of one
_POSITIVE = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "num_key_value_heads")
_MOST_DEPTH = 6
_MOST_CONFIG = 64 << 20


def check_files(name: str) -> None:
    """Check that the weight files of a local folder are complete, and that its files are real files; a hub name is not
    checked.

    Raises:
        UnsupportedModel: a file is a Git LFS pointer, missing, cut off or quantised without a configuration, or the
            folder holds an adapter; the message names the file and the next step.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        if file.is_file() and _begins_with(file, _POINTER):
            raise UnsupportedModel(
                "a file is a Git LFS pointer, not what it points to",
                needed="the file itself",
                found=f"{file.name}, {file.stat().st_size} bytes",
                where=name,
                next_step="run `git lfs pull` in the folder, or download the model again",
            )
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedModel(
            "the folder holds an adapter, which would not be read",
            needed="a model with its adapter merged",
            found="adapter_config.json",
            where=name,
            next_step="merge it (peft: model.merge_and_unload()) and save the model, or move the file away",
        )
    weights = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    for file in weights:
        integers = _check_safetensors(file, name)
        if integers and not _is_quantised(folder):
            raise UnsupportedModel(
                "weights are whole numbers, which config.json says nothing of",
                needed="weights of floats",
                found=f"{file.name}: {', '.join(integers[:3])}",
                where=name,
                next_step="save the model with plain weights (dequantised), or with its quantization_config",
            )
    missing = sorted(set(_shards(folder, name)) - {file.name for file in weights})
    if missing:
        raise _damaged(name, f"of {_INDEX}: {len(missing)} files are not there: {', '.join(missing[:3])}")


def _begins_with(file: Path, start: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(start)) == start


def _shards(folder: Path, name: str) -> Iterator[str]:
    """Yield the files that an index lists."""
    file = folder / _INDEX
    if not file.is_file():
        return
    try:
        listed = json.loads(file.read_bytes())["weight_map"]
        yield from map(str, listed.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(name, f"{file.name} lists no weights: {error}") from None


def _check_safetensors(file: Path, name: str) -> list[str]:
    """Return the integer matrices in a file, and refuse a file that is shorter or longer than its header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER):
            raise _damaged(name, f"{file.name}, {size:,} bytes, shorter than its header of {length:,}")
        try:
            header: Any = json.loads(stream.read(length))
            needed = 8 + length + max(_ends(header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(name, f"{file.name}, whose header is not readable: {str(error)[:100]}") from None
    if needed != size:
        raise _damaged(name, f"{file.name}, {size:,} bytes of {needed:,}")
    return [
        key
        for key, entry in header.items()
        if key.endswith(".weight") and entry.get("dtype", "")[:1] in ("I", "U") and len(entry.get("shape", ())) > 1
    ]


def _is_quantised(folder: Path) -> bool:
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _ends(entries: Iterable[Any]) -> Iterator[int]:
    for entry in entries:
        if "data_offsets" in entry:
            yield int(entry["data_offsets"][1])


def _damaged(name: str, found: str) -> UnsupportedModel:
    return UnsupportedModel(
        "the weights are damaged or half downloaded",
        needed="whole *.safetensors",
        found=found,
        where=name,
        next_step="delete the file and download it again",
    )


_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_MOST_BYTES = 64 << 20


def refuse_remote_code(name: str) -> None:
    """Refuse a folder whose model can be built only by Python code in the folder. Such code is ignored if transformers
    has a class for the model.

    Raises:
        RemoteCodeRefused: the model needs such code; the message names the classes that would have been imported.
        UnsupportedModel: config.json is not valid JSON.
    """
    file = Path(name).expanduser() / "config.json"
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        return
    try:
        config = strict_json(file.read_bytes())
    except ValueError as error:
        raise UnsupportedModel("config.json is not sound JSON", found=str(error)[:200], where=name) from None
    own = config.get("auto_map") if isinstance(config, dict) else None
    if own and config.get("model_type") not in CONFIG_MAPPING:
        listed = ", ".join(str(value) for value in own.values()) if isinstance(own, dict) else str(own)
        raise remote_code(name, listed)


def remote_code(name: str, found: str) -> RemoteCodeRefused:
    """Return the error for a model that needs Python code in its folder."""
    return RemoteCodeRefused(
        f"model {name!r} needs Python code of its own",
        needed="a model that transformers itself can build",
        found=found[:300],
        where=name,
        next_step="nothing was imported; read and run that code yourself, and import the states: probing store import",
    )


def load_weights(load: Callable[..., Any], name: str, *, allow_pickle: bool) -> Any:
    """Call `load(use_safetensors=…)` and return its result; pickled weights are loaded only if that is allowed and
    there are no others.

    Raises:
        UnsupportedModel: the folder has only pickled weights and these are not allowed, or they cannot be loaded.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        if pickles and not allow_pickle:
            raise UnsupportedModel(
                "the weights are a pickle, which can run code when it is loaded",
                needed="*.safetensors",
                found=", ".join(pickles[:3]),
                where=name,
                next_step="convert them, or add --allow-pickle-weights if you trust who made them",
            )
        return _unpickled(load, name) if pickles else load(use_safetensors=True)
    try:
        return load(use_safetensors=True)
    except OSError:
        if folder.is_dir() or not allow_pickle:
            raise
        return _unpickled(load, name)


def _unpickled(load: Callable[..., Any], name: str) -> Any:
    """Load weights from a pickle, by a reader that builds tensors and nothing else."""
    try:
        return load(use_safetensors=False)
    except Exception as error:  # a hostile pickle may raise anything
        raise UnsupportedModel(
            "the pickled weights cannot be loaded",
            needed="tensors and nothing else",
            found=f"{type(error).__name__}: {error}".splitlines()[0][:300],
            where=name,
            next_step="ask who made them for *.safetensors",
        ) from error


_NO_WEIGHTS = ("inv_freq", "masked_bias", "position_ids")  # buffers that older versions saved
_NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")


def warn_of_unused(model: nn.Module, keys: Collection[str], name: str) -> None:
    """Warn if weights inside lists of blocks were not loaded, since the model measured then differs from the one saved.

    Heads and poolers that were not asked for are not blocks, and are not mentioned.
    """
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    unused = sorted(key for key in keys if not key.endswith(_NO_WEIGHTS) and _is_of_blocks(key, lists))
    if unused:
        more = f", and {len(unused) - 3} more" if len(unused) > 3 else ""
        warnings.warn(
            f"{name}: the files hold weights of blocks that the model does not use: {', '.join(unused[:3])}{more}. "
            "Does config.json name fewer layers than were trained, or is an adapter not merged?",
            UnusedWeights,
            stacklevel=2,
        )


def _is_of_blocks(key: str, lists: Collection[str]) -> bool:
    """Return whether a key lies in one of the lists; files may leave out, or have, what stands before the list's own
    name.
    """
    heads = [key[: match.start(1)].rstrip(".") for match in _NUMBERED.finditer(key)]
    return any(
        path == head or path.endswith(f".{head}") or head.endswith(f".{path}")
        for head in heads
        if head
        for path in lists
        if path
    )


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
    if file.is_file() and file.stat().st_size <= _MOST_CONFIG:
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
