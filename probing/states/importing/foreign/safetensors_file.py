"""A safetensors file in a child process: a JSON header, then tensors without gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from probing.files.strict_json import strict_json
from probing.states.importing.foreign.limits import Limits
from probing.states.importing.foreign.npy import send_rows
from probing.states.importing.foreign.protocol import BLOCK_BYTES, Sender
from probing.states.importing.foreign.sources import SourceFile
from probing.states.store.audit import refuse

_MAX_HEADER = 16 << 20
_TYPES = {
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "<i1",
    "U8": "<u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
}


def read_safetensors(files: Sequence[SourceFile], sender: Sender, limits: Limits) -> None:
    """Send every tensor: states (R, D), or a column (R,) of whole numbers.

    Raises:
        UntrustedFile: a header that does not fit the file, or tensors of another kind.
    """
    for file in files:
        at = 0
        for name, dtype, shape, begin, end in _tensors(file, limits):
            if begin != at:
                refuse("tensors without gaps or overlaps", f"{file.name}: {name}", f"bytes {begin:,} after {at:,}")
            _send(file, name, dtype, shape, sender)
            at = end
        if file.stream.read(1):
            refuse("tensors up to the end of the file", file.name, "more bytes")


def _tensors(file: SourceFile, limits: Limits) -> list[tuple[str, str, list[int], int, int]]:
    size = int.from_bytes(file.exactly(8, "a header's length"), "little")
    if size > min(_MAX_HEADER, file.n_bytes):
        refuse(f"a header of at most {_MAX_HEADER:,} bytes", file.name, f"{size:,}")
    try:
        header = strict_json(file.exactly(size, "a header"))
    except ValueError as error:
        refuse("a header in JSON", file.name, str(error)[:200])
    if not isinstance(header, dict):
        refuse("a header with tensors", file.name, type(header).__name__)
    found = [_tensor(name, entry, file.name) for name, entry in header.items() if name != "__metadata__"]
    return sorted(found, key=lambda tensor: tensor[3:])


def _tensor(name: str, entry: Any, where: str) -> tuple[str, str, list[int], int, int]:
    place = f"{where}: {name[:80]}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse("dtype, shape and data_offsets of a tensor", place, repr(entry)[:100])
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not lists or not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, *offsets)):
        refuse("whole numbers for shape and offsets", place, f"{shape!r}, {offsets!r}"[:100])
    if not isinstance(dtype, str) or dtype not in _TYPES:
        refuse(f"one of {', '.join(_TYPES)}", place, repr(dtype)[:40])
    if len(shape) != (2 if "F" in dtype else 1):
        refuse("floats (R, D) or whole numbers (R,)", place, f"{dtype} {shape}")
    begin, end = offsets
    if end - begin != math.prod(shape) * np.dtype(_TYPES[dtype]).itemsize:
        refuse("as many bytes as the shape says", place, f"{end - begin:,} bytes for {dtype} {shape}")
    return name, dtype, shape, begin, end


def _send(file: SourceFile, name: str, dtype: str, shape: list[int], sender: Sender) -> None:
    kind = np.dtype(_TYPES[dtype])
    if dtype != "BF16":
        send_rows(file, name, shape, kind, sender)
        return
    step = max(1, BLOCK_BYTES // max(1, 4 * shape[1]))
    for first in range(0, max(1, shape[0]), step):
        count = min(step, shape[0] - first)
        bits = np.frombuffer(file.exactly(count * shape[1] * 2, "a tensor"), kind).reshape(count, shape[1])
        sender.rows(name, (bits.astype(np.uint32) << np.uint32(16)).view(np.float32), "bfloat16")
