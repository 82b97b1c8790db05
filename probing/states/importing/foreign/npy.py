"""Reads NumPy files, safetensors files and `probing` stores in the child process."""

from __future__ import annotations

import ast
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probing.errors import CorruptShard
from probing.files.strict_json import strict_json
from probing.states.importing.foreign.protocol import BLOCK_BYTES, Sender
from probing.states.importing.foreign.sources import Limits, SourceFile, open_source
from probing.states.store.commit_record import incomplete, load_record
from probing.states.store.format import read_store_json, record_file
from probing.states.store.verify import refuse, verify_shard

_MAX_HEADER = 10_000
_MAGIC = b"\x93NUMPY"
_NUMBERS = re.compile(r"[<>|=]?([iu][1248]|f[248])")


def read_npy(files: Sequence[SourceFile], sender: Sender, limits: Limits) -> None:
    """Read NumPy files and send every array: states (N, D), or a column (N,) of integers.

    Raises:
        UntrustedFile: a file holds pickled objects or arrays of another kind, or its header does not fit its size.
    """
    for file in files:
        shape, dtype = _header(file)
        send_array(file, file.path.stem, shape, dtype, sender, limits)


def _header(file: SourceFile) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype, from a header that is a literal of three keys and nothing more."""
    start = file.exactly(8, "an npy header")
    if start[:6] != _MAGIC or start[6] not in (1, 2, 3):
        refuse("a header of the npy format", file.name, repr(start)[:60])
    size = int.from_bytes(file.exactly(2 if start[6] == 1 else 4, "an npy header"), "little")
    if size > _MAX_HEADER:
        refuse(f"a header of at most {_MAX_HEADER:,} bytes", file.name, f"{size:,}")
    text = file.exactly(size, "an npy header").decode("latin-1")
    try:
        header = ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        header = None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        refuse("a header of descr, fortran_order and shape", file.name, text[:60])
    shape, descr = header["shape"], header["descr"]
    if not isinstance(descr, str) or not _NUMBERS.fullmatch(descr):
        refuse("integers or floats; objects are never unpickled", file.name, f"dtype {descr!r}"[:100])
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        refuse("a shape of whole numbers", file.name, f"{shape!r}"[:100])
    if header["fortran_order"] is not False:
        refuse("rows one after another (C order)", file.name, "columns one after another (Fortran order)")
    return shape, np.dtype(descr)


def send_array(
    file: SourceFile, column: str, shape: Sequence[int], dtype: np.dtype[Any], sender: Sender, limits: Limits
) -> None:
    """Send the array that fills the rest of the file, in blocks of rows.

    Raises:
        UntrustedFile: the array is neither floats (N, D) nor integers (N,), or its size does not fit its shape.
    """
    if len(shape) != (2 if dtype.kind == "f" else 1):
        refuse("floats (N, D) or whole numbers (N,)", file.name, f"{dtype} {tuple(shape)}"[:100])
    size, rest = math.prod(shape) * dtype.itemsize, file.n_bytes - file.stream.tell()
    if size != rest or size > limits.column_bytes:
        refuse("as many bytes as the shape says", file.name, f"{rest:,} bytes for {tuple(shape)} of {dtype}"[:100])
    send_rows(file, column, shape, dtype, sender)


def send_rows(file: SourceFile, column: str, shape: Sequence[int], dtype: np.dtype[Any], sender: Sender) -> None:
    """Read the rows of an array whose shape was already checked, and send them in blocks."""
    row = math.prod(shape[1:])
    step = max(1, BLOCK_BYTES // max(1, 8 * row))
    for first in range(0, max(1, shape[0]), step):
        count = min(step, shape[0] - first)
        data = file.exactly(count * row * dtype.itemsize, "an array")
        sender.rows(column, np.frombuffer(data, dtype).reshape(count, *shape[1:]))


def read_store(path: Path, sender: Sender) -> None:
    """Verify a complete store, and send the SHA-256 of the JSON files that passed.

    Raises:
        NotAStore, UnsupportedFormat, IncompleteStore: the directory is not a complete store of this format.
        CorruptShard: the bytes of a shard differ from its commit record.
        UntrustedFile: a file is a symbolic link, or HDF5 that breaks a rule.
    """
    for folder in (path, path / "shards"):
        if folder.is_symlink():
            refuse("no symbolic links", folder.name, "a symbolic link")
    sender.send("record", shard=-1, sha256=_sha256(path / "store.json"))
    _, recipe = read_store_json(path)
    for shard in range(recipe.n_shards):
        name = path / "shards" / record_file(shard)
        if not name.exists():
            raise incomplete(path, shard, recipe.n_shards)
        sha256 = _sha256(name)
        record = load_record(path, recipe, shard)
        if record is None:
            raise incomplete(path, shard, recipe.n_shards)
        open_source(path / "shards" / record["file"]).stream.close()
        problems = verify_shard(path, recipe, record)
        if problems:
            raise CorruptShard(f"shard {shard} is damaged", needed="bytes as committed", found="; ".join(problems[:3]))
        sender.send("record", shard=shard, sha256=sha256)


def _sha256(path: Path) -> str:
    file = open_source(path)
    with file.stream as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_MAX_SAFETENSORS_HEADER = 16 << 20
TYPES = {
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
    """Read safetensors files and send every tensor: states (R, D), or a column (R,) of integers.

    Raises:
        UntrustedFile: the header does not fit the file, or tensors are of another kind.
    """
    for file in files:
        for name, dtype, shape, _, _ in tensors_of(file):
            _send(file, name, dtype, shape, sender)


def tensors_of(file: SourceFile, floats: Sequence[int] = (2,)) -> list[tuple[str, str, list[int], int, int]]:
    """Return (name, type, shape, first byte, end byte) of every tensor, in file order; the stream is then at the first
    tensor.

    Args:
        file: the file, at its beginning.
        floats: allowed numbers of axes of float tensors; they also hold for integers, except that integers must have
            one axis if a single number is given.

    Raises:
        UntrustedFile: the header does not fit the file, or tensors are of another kind.
    """
    size = int.from_bytes(file.exactly(8, "a header's length"), "little")
    if size > min(_MAX_SAFETENSORS_HEADER, file.n_bytes):
        refuse(f"a header of at most {_MAX_SAFETENSORS_HEADER:,} bytes", file.name, f"{size:,}")
    try:
        header = strict_json(file.exactly(size, "a header"))
    except ValueError as error:
        refuse("a header in JSON", file.name, str(error)[:200])
    if not isinstance(header, dict):
        refuse("a header with tensors", file.name, type(header).__name__)
    found = [_tensor(name, entry, file.name, floats) for name, entry in header.items() if name != "__metadata__"]
    found.sort(key=lambda tensor: tensor[3:])
    at = 0
    for name, _, _, begin, end in found:
        if begin != at:
            refuse("tensors without gaps or overlaps", f"{file.name}: {name}", f"bytes {begin:,} after {at:,}")
        at = end
    if file.n_bytes < 8 + size + at:
        refuse(f"{at:,} bytes of tensors", file.name, f"{file.n_bytes - 8 - size:,}: the file is cut off")
    if file.n_bytes > 8 + size + at:
        refuse("tensors up to the end of the file", file.name, f"{file.n_bytes - 8 - size:,} bytes for {at:,}")
    return found


def _tensor(name: str, entry: Any, where: str, floats: Sequence[int]) -> tuple[str, str, list[int], int, int]:
    place = f"{where}: {name[:80]}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse("dtype, shape and data_offsets of a tensor", place, repr(entry)[:100])
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not lists or not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, *offsets)):
        refuse("whole numbers for shape and offsets", place, f"{shape!r}, {offsets!r}"[:100])
    if not isinstance(dtype, str) or dtype not in TYPES:
        refuse(f"one of {', '.join(TYPES)}", place, repr(dtype)[:40])
    if len(shape) not in (floats if "F" in dtype else (1,) if len(floats) == 1 else floats):
        refuse("floats (R, D) or whole numbers (R,)", place, f"{dtype} {shape}")
    begin, end = offsets
    if end - begin != math.prod(shape) * np.dtype(TYPES[dtype]).itemsize:
        refuse("as many bytes as the shape says", place, f"{end - begin:,} bytes for {dtype} {shape}")
    return name, dtype, shape, begin, end


def _send(file: SourceFile, name: str, dtype: str, shape: list[int], sender: Sender) -> None:
    kind = np.dtype(TYPES[dtype])
    if dtype != "BF16":
        send_rows(file, name, shape, kind, sender)
        return
    step = max(1, BLOCK_BYTES // max(1, 4 * shape[1]))
    for first in range(0, max(1, shape[0]), step):
        count = min(step, shape[0] - first)
        bits = np.frombuffer(file.exactly(count * shape[1] * 2, "a tensor"), kind).reshape(count, shape[1])
        sender.rows(name, (bits.astype(np.uint32) << np.uint32(16)).view(np.float32), "bfloat16")
