"""`.npy` files in a child process: one array a file, the name of the file is the name of the column."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from probing.states.importing.foreign.limits import Limits
from probing.states.importing.foreign.protocol import BLOCK_BYTES, Sender
from probing.states.importing.foreign.sources import SourceFile
from probing.states.store.audit import refuse

_MAX_HEADER = 10_000
_MAGIC = b"\x93NUMPY"
_NUMBERS = re.compile(r"[<>|=]?([iu][1248]|f[248])")


def read_npy(files: Sequence[SourceFile], sender: Sender, limits: Limits) -> None:
    """Send every array: states (N, D), or a column (N,) of whole numbers.

    Raises:
        UntrustedFile: pickled objects, a header that does not fit the file, arrays of another kind.
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
        UntrustedFile: not numbers, not one or two axes, or not as many bytes as the shape says.
    """
    if len(shape) != (2 if dtype.kind == "f" else 1):
        refuse("floats (N, D) or whole numbers (N,)", file.name, f"{dtype} {tuple(shape)}"[:100])
    size, rest = math.prod(shape) * dtype.itemsize, file.n_bytes - file.stream.tell()
    if size != rest or size > limits.column_bytes:
        refuse("as many bytes as the shape says", file.name, f"{rest:,} bytes for {tuple(shape)} of {dtype}"[:100])
    send_rows(file, column, shape, dtype, sender)


def send_rows(file: SourceFile, column: str, shape: Sequence[int], dtype: np.dtype[Any], sender: Sender) -> None:
    """Send the next rows of a file whose shape was checked."""
    row = math.prod(shape[1:])
    step = max(1, BLOCK_BYTES // max(1, 8 * row))
    for first in range(0, max(1, shape[0]), step):
        count = min(step, shape[0] - first)
        data = file.exactly(count * row * dtype.itemsize, "an array")
        sender.rows(column, np.frombuffer(data, dtype).reshape(count, *shape[1:]))
