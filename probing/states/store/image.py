"""Builds an HDF5 file from arrays in memory, and reopens, describes and compares it."""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import xxhash
from h5py import h5d, h5g, h5p, h5s, h5t
from numpy.typing import NDArray

from probing.errors import CorruptShard
from probing.states.store.format import ALIGNMENT

_METADATA_ROOM = 1 << 20
_GROUPS = ("rows", "examples", "sites", "outputs", "selection", "missing", "latents")


def bfloat16_type() -> Any:
    """Return HDF5's description of bfloat16, little-endian; other HDF5 tools convert it exactly to float32."""
    kind = h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_ebias(127)
    kind.set_precision(16)
    kind.set_size(2)
    return kind


FILE_TYPES: dict[str, Callable[[], Any]] = {
    "u1": lambda: h5t.STD_U8LE,
    "u2": lambda: h5t.STD_U16LE,
    "u4": lambda: h5t.STD_U32LE,
    "u8": lambda: h5t.STD_U64LE,
    "i4": lambda: h5t.STD_I32LE,
    "float16": lambda: h5t.IEEE_F16LE,
    "float32": lambda: h5t.IEEE_F32LE,
    "float64": lambda: h5t.IEEE_F64LE,
    "bfloat16": bfloat16_type,
}


class _Skeleton(io.RawIOBase):
    """A file in memory for HDF5 to write its own bytes to; where arrays will lie, no memory is ever touched."""

    def __init__(self, room: int) -> None:
        self.bytes = mmap.mmap(-1, room)
        self.end = 0
        self._place = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the file."""
        self._place = offset + (0, self._place, self.end)[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the current place on."""
        into = memoryview(buffer).cast("B")
        part = self.bytes[self._place : min(self._place + into.nbytes, self.end)]
        into[: len(part)] = part
        self._place += len(part)
        return len(part)

    def write(self, buffer: Any) -> int:
        """Write bytes at the current place."""
        given = memoryview(buffer).cast("B")
        self.bytes[self._place : self._place + given.nbytes] = given
        self._place += given.nbytes
        self.end = max(self.end, self._place)
        return given.nbytes

    def truncate(self, size: int | None = None) -> int:
        """Set the end of the file."""
        self.end = self._place if size is None else size
        return self.end


@dataclass(frozen=True)
class Image:
    """Holds an HDF5 file that is not written yet: the metadata bytes of HDF5 and, between them, the arrays, which are
    not copied.

    Attributes:
        skeleton: bytes of the file without the arrays.
        placed: arrays of `ALIGNMENT` bytes or more, by their offset in the file.
    """

    skeleton: _Skeleton
    placed: Mapping[int, NDArray[Any]]

    def __len__(self) -> int:
        return self.skeleton.end

    @property
    def buffers(self) -> list[memoryview]:
        """Bytes of the file as a list of buffers, in file order."""
        own, found, place = memoryview(self.skeleton.bytes), [], 0
        for offset, array in sorted(self.placed.items()):
            found += [own[place:offset], array.reshape(-1).data.cast("B")]
            place = offset + array.nbytes
        return [*found, own[place : self.skeleton.end]]

    def sha256(self) -> str:
        """Return the SHA-256 of all bytes."""
        digest = hashlib.sha256()
        for buffer in self.buffers:
            digest.update(buffer)
        return digest.hexdigest()


def build(
    arrays: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str], attributes: Mapping[str, Mapping[str, Any]]
) -> Image:
    """Build an HDF5 file in memory and return it. Equal content gives equal bytes within one HDF5 version.

    Args:
        arrays: contiguous arrays by path of the dataset; they must not change while the image is in use.
        dtypes: stored data type by path.
        attributes: attributes by path of the dataset, or `/` for the root.
    """
    skeleton = _Skeleton(_METADATA_ROOM + sum(array.nbytes + 4 * ALIGNMENT for array in arrays.values()))
    placed: dict[int, NDArray[Any]] = {}
    with h5py.File(skeleton, "w", alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT) as file:
        _set_attributes(file, attributes["/"])
        untimed = h5p.create(h5p.GROUP_CREATE)
        untimed.set_obj_track_times(False)
        for group in (name for name in _GROUPS if any(path.startswith(f"/{name}/") for path in arrays)):
            h5g.create(file.id, group.encode(), gcpl=untimed).close()
        for path, array in arrays.items():
            kind = FILE_TYPES[dtypes[path]]()
            dataset = _create(file, path, array.shape, kind)
            if array.nbytes >= ALIGNMENT:
                placed[dataset.get_offset()] = array
            elif array.size:
                dataset.write(h5s.ALL, h5s.ALL, array, mtype=kind)
        for path, values in attributes.items():  # in their order, for it decides where HDF5 puts them
            if path != "/":
                _set_attributes(file[path], values)
    return Image(skeleton, placed)


def _create(file: Any, path: str, shape: tuple[int, ...], kind: Any) -> Any:
    """Create a dataset with its place in the file, and nothing in it."""
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_layout(h5d.CONTIGUOUS)
    plan.set_obj_track_times(False)
    plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5d.FILL_TIME_NEVER)
    return h5d.create(file.id, path.encode(), kind, h5s.create_simple(shape), dcpl=plan)


def _set_attributes(target: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        fixed = np.bytes_(value.encode("ascii", "backslashreplace") or b" ") if isinstance(value, str) else value
        target.attrs.create(name, fixed)


def describe(image: Image, arrays: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Reopen an image and return the dtype, shape, offset, size and hash of each dataset.

    Raises:
        CorruptShard: the image does not hold the arrays' bytes at those offsets.
    """
    found = {}
    with h5py.File(image.skeleton, "r") as file:
        for path, array in arrays.items():
            dataset = file[path].id
            offset = dataset.get_offset() or 0 if array.size else 0
            held = image.placed.get(offset)
            own = image.skeleton.bytes[offset : offset + array.nbytes] if array.nbytes < ALIGNMENT else b""
            is_there = held is array or (array.nbytes < ALIGNMENT and own == array.tobytes())
            is_same = dataset.shape == array.shape and dataset.get_type().equal(FILE_TYPES[dtypes[path]]())
            if not is_there or not is_same:
                raise CorruptShard(f"{path} changed while the shard was built", next_step="check the machine's memory")
            found[path] = {
                "dtype": dtypes[path],
                "shape": list(array.shape),
                "offset": offset,
                "nbytes": array.nbytes,
                "xxh3_128": xxhash.xxh3_128_hexdigest(array.data),
            }
    return found
