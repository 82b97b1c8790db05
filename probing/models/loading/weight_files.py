"""Checks that the files of a model folder are whole: no Git LFS pointers, no half downloads, no damaged safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from probing.errors import UnsupportedModel

_POINTER = b"version https://git-lfs"
_MOST_HEADER = 100 << 20  # as much as safetensors itself reads
_INDEX = "model.safetensors.index.json"


def check_files(name: str) -> None:
    """Refuse a folder whose files are not what their names say; a hub name is not looked at.

    Raises:
        UnsupportedModel: which file, what is wrong with it, and what to do.
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
