"""Exports directions to GGUF and other formats of steering vectors; each file carries the verdicts."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from probing.errors import BadParameter
from probing.files.whole_files import write_atomically
from probing.use.directions.record import Evidence

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
_UINT32, _STRING = 4, 8  # types of metadata
_F32 = 0  # type of tensors
_LONGEST_NAME = 64


def gguf_bytes(metadata: Mapping[str, str | int], tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the bytes of the file.

    Args:
        metadata: texts, and whole numbers from 0 to 2³² − 1.
        tensors: `(n,)` float32, names of at most 64 bytes.
    """
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    head += [_text(key) + _value(value) for key, value in metadata.items()]
    data, at = [], 0
    for name, tensor in tensors.items():
        if len(name.encode()) > _LONGEST_NAME:
            raise ValueError(f"a tensor's name of more than {_LONGEST_NAME} bytes: {name}")
        head.append(_text(name) + struct.pack("<IQIQ", 1, len(tensor), _F32, at))
        content = _aligned(np.ascontiguousarray(tensor, "<f4").tobytes())
        data.append(content)
        at += len(content)
    return _aligned(b"".join(head)) + b"".join(data)


def _value(value: str | int) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    return struct.pack("<II", _UINT32, value)


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _aligned(content: bytes) -> bytes:
    return content + bytes(-len(content) % ALIGNMENT)


KEY = "probing.evidence"
_NOTE = "added to the residual stream at every position; each verdict is about one position, named in its evidence"


def export_control_vector(
    path: str | Path, evidence: Sequence[Evidence], *, model_hint: str, start: int = 0, goal: int = 1
) -> Path:
    """Write a GGUF control vector, as llama.cpp reads it with `--control-vector`.

    There `direction.n` is added, times a strength, to what leaves block n (blocks count from 0), from n = 1 on; that is
    the site `resid.(n + 1)`. Strength 1 moves states by the whole difference from `start` to `goal`, weighted over
    strata. The evidence stands in the metadata, by layer.

    Args:
        path: of the file.
        evidence: directions at sites `resid.2` and higher, one each, of one model and property.
        model_hint: llama.cpp's name of the architecture, such as `llama` or `gpt2`.
        start, goal: class codes; of real values the shift is per unit.

    Raises:
        BadParameter: no evidence, other kinds or sites, or of several models or properties.
    """
    vectors = {_block(one): one for one in _together(evidence)}
    layers = sorted(vectors)
    metadata: dict[str, str | int] = {
        "general.architecture": "controlvector",
        "controlvector.model_hint": model_hint,
        "controlvector.layer_count": len(layers),
        "probing.note": _NOTE,
    }
    metadata |= {f"probing.evidence.{n}": _told(vectors[n]) for n in layers}
    tensors = {f"direction.{n}": vectors[n].direction(start=start, goal=goal).astype(np.float32) for n in layers}
    write_atomically(Path(path), gguf_bytes(metadata, tensors))
    return Path(path)


def export_vectors(path: str | Path, evidence: Sequence[Evidence], *, start: int = 0, goal: int = 1) -> Path:
    """Write one float32 vector a place, named by it, as `.npz` or `.safetensors`, with all evidence as JSON.

    The JSON is the array `probing.evidence` of an npz, or that key of a safetensors file's metadata.

    Raises:
        BadParameter: see `export_control_vector`; any site will do here. Or another ending of the name.
    """
    file = Path(path)
    together = _together(evidence)
    vectors: dict[str, NDArray[np.float32]] = {
        one.header.place: one.direction(start=start, goal=goal).astype(np.float32) for one in together
    }
    told = json.dumps({one.header.place: asdict(one.header) for one in together}, sort_keys=True)
    if file.suffix == ".safetensors":
        write_atomically(file, save(vectors, metadata={KEY: told}))
    elif file.suffix == ".npz":
        buffer = BytesIO()
        np.savez(buffer, **{**vectors, KEY: np.array(told)})  # type: ignore[arg-type]
        write_atomically(file, buffer.getvalue())
    else:
        raise BadParameter(
            "no such format of vectors", needed=".npz or .safetensors", found=file.suffix or "none", where=str(path)
        )
    return file


def _told(one: Evidence) -> str:
    return json.dumps(asdict(one.header), sort_keys=True)


def _together(evidence: Sequence[Evidence]) -> Sequence[Evidence]:
    """Return directions of one model and property at different places."""
    kinds = {one.header.kind for one in evidence}
    if kinds != {"class_mean"}:
        raise BadParameter(
            "vectors are made of directions",
            needed="class_mean evidence, one or more",
            found=", ".join(sorted(kinds)) or "none",
        )
    about = {(one.header.model, one.header.revision, one.header.task, one.width) for one in evidence}
    places = [one.header.place for one in evidence]
    if len(about) > 1 or len(set(places)) < len(places):
        raise BadParameter(
            "vectors of one file belong together",
            needed="one model and property, each place once",
            found=f"{len(about)} of these, {len(places)} places",
        )
    return evidence


def _block(one: Evidence) -> int:
    """Return the block whose output is the site."""
    found = re.fullmatch(r"resid\.([0-9]+)", one.header.site)
    if found is None or int(found[1]) < 2:
        raise BadParameter(
            "a control vector cannot be at this site",
            needed="resid.2 or higher: what leaves a block",
            found=one.header.site,
            next_step="use export_vectors",
        )
    return int(found[1]) - 1
