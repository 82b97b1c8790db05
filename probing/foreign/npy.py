"""`.npy` files in a child process: one array a file, the name of the file is the name of the column."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib import format as npy_format

from probing.foreign.limits import Limits
from probing.foreign.protocol import BLOCK_BYTES, Sender
from probing.foreign.sources import SourceFile
from probing.store.audit import refuse

_MAX_HEADER = 10_000
_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def read_npy(files: Sequence[SourceFile], sender: Sender, limits: Limits) -> None:
    """Send every array: states (N, D), or a column (N,) of whole numbers.

    Raises:
        UntrustedFile: pickled objects, a header that does not fit the file, arrays of another kind.
    """
    for file in files:
        shape, dtype = _header(file)
        send_array(file, file.path.stem, shape, dtype, sender, limits)


def _header(file: SourceFile) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = npy_format.read_magic(file.stream)
        read = _HEADERS.get(version)
        shape, fortran, dtype = read(file.stream, max_header_size=_MAX_HEADER) if read else ((), False, np.dtype("O"))
    except (ValueError, TypeError, KeyError, SyntaxError, OverflowError, RecursionError) as error:
        refuse("a header of the npy format", file.name, str(error).splitlines()[0][:200] if str(error) else "none")
    if fortran:
        refuse("rows one after another (C order)", file.name, "columns one after another (Fortran order)")
    return shape, dtype


def send_array(
    file: SourceFile, column: str, shape: Sequence[int], dtype: np.dtype, sender: Sender, limits: Limits
) -> None:
    """Send the array that fills the rest of the file, in blocks of rows.

    Raises:
        UntrustedFile: not numbers, not one or two axes, or not as many bytes as the shape says.
    """
    if dtype.hasobject or dtype.kind not in "fiu" or dtype.itemsize > 8:
        refuse("integers or floats; objects are never unpickled", file.name, f"dtype {dtype}"[:100])
    if len(shape) != (2 if dtype.kind == "f" else 1) or not all(type(n) is int and n >= 0 for n in shape):
        refuse("floats (N, D) or whole numbers (N,)", file.name, f"{dtype} {tuple(shape)}"[:100])
    size, rest = math.prod(shape) * dtype.itemsize, file.n_bytes - file.stream.tell()
    if size != rest or size > limits.column_bytes:
        refuse("as many bytes as the shape says", file.name, f"{rest:,} bytes for {tuple(shape)} of {dtype}"[:100])
    send_rows(file, column, shape, dtype, sender)


def send_rows(file: SourceFile, column: str, shape: Sequence[int], dtype: np.dtype, sender: Sender) -> None:
    """Send the next rows of a file whose shape was checked."""
    row = math.prod(shape[1:])
    step = max(1, BLOCK_BYTES // max(1, 8 * row))
    for first in range(0, max(1, shape[0]), step):
        count = min(step, shape[0] - first)
        data = file.exactly(count * row * dtype.itemsize, "an array")
        sender.rows(column, np.frombuffer(data, dtype).reshape(count, *shape[1:]))
