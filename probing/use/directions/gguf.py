"""GGUF, version 3: the file format of llama.cpp and its kin. Only what a control vector needs is written.

Layout, little-endian: `GGUF`, uint32 version, uint64 tensors, uint64 metadata entries; each entry a string key, uint32
type and value; each tensor a string name, uint32 dimensions, uint64 sizes, uint32 type, uint64 offset from the start of
the data; zeros up to a multiple of 32; the data, each tensor again from a multiple of 32. A string is uint64 bytes and
UTF-8.

References:
    ggml, docs/gguf.md, "File Structure".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

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
