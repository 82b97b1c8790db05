"""Messages from the child process to its parent: frames of a JSON head and raw bytes, which the parent checks."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import UntrustedFile

STATES, INDEX = "<f4", "<i8"
BLOCK_BYTES = 16 << 20
_MAX_HEAD, _MAX_BODY, _MAX_WIDTH = 8 << 20, 256 << 20, 1 << 24
_SIZES = struct.Struct("<4sIQ")
_MARK = b"prb1"


@dataclass(frozen=True)
class Frame:
    """Holds one message from the child process.

    Attributes:
        kind: `rows`, `sentence`, `request`, `facts`, `record`, `refused` or `end`.
        head: the fields of that kind of message.
        rows: for `rows`: float32 states (n, D), or an int64 column (n,).
    """

    kind: str
    head: dict[str, Any] = field(default_factory=dict)
    rows: NDArray[Any] | None = None


class Sender:
    """Sends frames from the child process to its parent."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def send(self, kind: str, **head: Any) -> None:
        """Send a message without rows."""
        self._write({"kind": kind, **head}, b"")

    def rows(self, column: str, values: NDArray[Any], dtype: str = "") -> None:
        """Send rows to be appended to a column: floats (n, D) as float32, integers (n,) as int64.

        Args:
            column: name of the column in the file.
            values: the rows.
            dtype: data type in the file, if it differs from that of `values`.
        """
        with np.errstate(over="ignore"):
            plain = np.ascontiguousarray(values, STATES if values.ndim == 2 else INDEX)
        head = {"kind": "rows", "column": column, "shape": list(plain.shape), "dtype": dtype or values.dtype.name}
        self._write(head, plain.reshape(-1).data.cast("B") if plain.size else b"")

    def _write(self, head: dict[str, Any], body: bytes | memoryview) -> None:
        text = json.dumps(head).encode()
        self._out.write(_SIZES.pack(_MARK, len(text), len(body)) + text)
        self._out.write(body)
        self._out.flush()


def frames(stream: IO[bytes]) -> Iterator[Frame]:
    """Read the child's stream and yield its frames, until `end`, `refused` or the end of the stream.

    Raises:
        UntrustedFile: the bytes are not a frame.
    """
    while head_bytes := stream.read(_SIZES.size):
        if len(head_bytes) < _SIZES.size:
            return
        mark, head_size, body_size = _SIZES.unpack(head_bytes)
        if mark != _MARK or head_size > _MAX_HEAD or body_size > _MAX_BODY:
            raise _broken("a frame that is none")
        text, body = stream.read(head_size), bytearray(body_size)
        if len(text) < head_size or _filled(stream, body) < body_size:
            return
        frame = _frame(text, body)
        yield frame
        if frame.kind in ("end", "refused"):
            return


def _filled(stream: IO[bytes], body: bytearray) -> int:
    view, done = memoryview(body), 0
    while done < len(body):
        part = stream.read(min(1 << 20, len(body) - done))
        if not part:
            break
        view[done : done + len(part)] = part
        done += len(part)
    return done


def _frame(text: bytes, body: bytearray) -> Frame:
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        raise _broken("a head that is not JSON") from None
    if not isinstance(head, dict) or not isinstance(head.get("kind"), str):
        raise _broken("a head without a kind")
    kind = head.pop("kind")
    return Frame(kind, head, _rows(head, body) if kind == "rows" else None)


def _rows(head: dict[str, Any], body: bytearray) -> NDArray[Any]:
    column, shape = head.get("column"), head.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise _broken("rows of no shape")
    if not isinstance(column, str) or len(shape) not in (1, 2) or shape[1:] > [_MAX_WIDTH]:
        raise _broken("rows of no shape")
    dtype = np.dtype(STATES if len(shape) == 2 else INDEX)
    if math.prod(shape) * dtype.itemsize != len(body):
        raise _broken("rows of another size than their shape")
    return np.frombuffer(body, dtype).reshape(shape)


def _broken(found: str) -> UntrustedFile:
    return UntrustedFile("the process that read the file broke", needed="frames of plain numbers", found=found)
