"""Verification of shards against their records, and shard files that are read only after it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import xxhash
from h5py import h5d, h5f
from numpy.typing import NDArray

from probing.errors import CorruptShard, UntrustedFile
from probing.states.store.audit import AuditLimits, audit
from probing.states.store.commit_record import corrupt, load_record, shard_attributes
from probing.states.store.format import MAX_SHARD_BYTES, MEMORY_TYPES, StoreLayout, content_id, parse_signed, widen
from probing.states.store.image import FILE_TYPES

_LIMITS = AuditLimits(dataset_bytes=MAX_SHARD_BYTES, total_bytes=MAX_SHARD_BYTES)


def verify_shards(path: Path, recipe: StoreLayout) -> list[str]:
    """Read the records and files of all committed shards again, and return their problems."""
    problems = []
    for shard in range(recipe.n_shards):
        try:
            record = load_record(path, recipe, shard)
        except CorruptShard as error:
            problems.append(f"shard {shard}: {error.found}")
            continue
        if record is not None:
            problems += [f"shard {shard}: {problem}" for problem in verify_shard(path, recipe, record)]
    return problems


def verify_seal(path: Path, recipe: StoreLayout) -> list[str]:
    """Check seal.json and return its problems; none if there is no seal."""
    file = path / "seal.json"
    if not file.is_file():
        return []
    try:
        sealed = parse_signed(file.read_bytes())
        records = {shard: load_record(path, recipe, shard) for shard in range(recipe.n_shards)}
    except (ValueError, CorruptShard) as error:
        return [f"seal.json: {error.found if isinstance(error, CorruptShard) else error}"]
    if sealed.get("content_id") != content_id({shard: record for shard, record in records.items() if record}):
        return ["seal.json: its content_id is not that of the committed shards"]
    return []


def verify_shard(path: Path, recipe: StoreLayout, record: Mapping[str, Any]) -> list[str]:
    """Compare one shard file with its record, and return the problems."""
    attributes = shard_attributes(recipe, record["shard"], record["n_rows"], record["sites"])
    return verify_file(path / "shards" / record["file"], record, attributes)


def verify_file(
    file: Path, record: Mapping[str, Any], attributes: Mapping[str, Mapping[str, Any]], limits: AuditLimits = _LIMITS
) -> list[str]:
    """Compare one HDF5 file with the SHA-256 and the datasets in its record and with the expected attributes by path,
    and return the problems.
    """
    if file.is_symlink():
        return [f"{file.name} is a symbolic link"]
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        return [f"{file.name} has another SHA-256 than its record says"]
    try:
        with h5py.File(h5f.open_file_image(data)) as opened:
            found = audit(opened, limits=limits)
            problems = _compare(found, record["datasets"])
            problems = problems or _compare_bytes(data, record["datasets"])
            return problems or _compare_attributes(opened, attributes)
    except UntrustedFile as error:
        return [f"{file.name}: {error.where} breaks the rule: {error.needed} ({error.found})"]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, NotImplementedError) as error:
        return [f"{file.name}: {error}"]


def _compare(found: Mapping[str, Any], expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = [f"{path} is not in both the file and its record" for path in sorted(set(found) ^ set(expected))]
    for path in sorted(set(found) & set(expected)):
        dataset, entry = found[path], expected[path]
        plan = dataset.get_create_plist()
        if plan.get_layout() != h5d.CONTIGUOUS or plan.get_nfilters():
            problems.append(f"{path} is not stored contiguously and unfiltered")
        elif entry["dtype"] not in FILE_TYPES or not dataset.get_type().equal(FILE_TYPES[entry["dtype"]]()):
            problems.append(f"{path} is not {entry['dtype']} in the file")
        elif list(dataset.shape) != entry["shape"] or dataset.get_storage_size() != entry["nbytes"]:
            problems.append(f"{path} has shape {list(dataset.shape)} in the file, {entry['shape']} in its record")
        elif entry["nbytes"] and dataset.get_offset() != entry["offset"]:
            problems.append(f"{path} begins elsewhere than its record says")
    return problems


def _compare_bytes(data: bytes, datasets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    view = memoryview(data)
    return [
        f"{path} has another hash than its record says"
        for path, entry in datasets.items()
        if xxhash.xxh3_128_hexdigest(view[entry["offset"] : entry["offset"] + entry["nbytes"]]) != entry["xxh3_128"]
    ]


def _compare_attributes(file: Any, wanted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"attribute {name} of {path} is {_plain(file[path].attrs.get(name))!r}, not {value!r}"
        for path, values in wanted.items()
        for name, value in values.items()
        if _plain(file[path].attrs.get(name)) != value
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return value.item() if isinstance(value, np.generic) else value


Verification = Literal["off", "fast", "full"]


class ShardFiles:
    """Reads datasets of shards. Several threads may use it: no file stays open, and no file position is shared.

    Attributes:
        path: directory of the store.
        recipe: layout of the store.
        records: commit records by shard.
        level: what is verified at a first read (`off`, `fast` or `full`).
    """

    def __init__(
        self, path: Path, recipe: StoreLayout, records: Mapping[int, Mapping[str, Any]], level: Verification
    ) -> None:
        self.path, self.recipe, self.records, self.level = path, recipe, records, level
        self._checked: set[tuple[int, str]] = set()

    def read_into(self, shard: int, path: str, out: NDArray[np.float32]) -> None:
        """Read a whole dataset into `out` by `pread`, without a copy if the stored dtype is float32."""
        entry = self.records[shard]["datasets"][path]
        buffer = out if self.recipe.dtype == "float32" else np.empty(out.shape, MEMORY_TYPES[self.recipe.dtype])
        if entry["nbytes"]:
            view, done = buffer.data.cast("B"), 0
            with self._opened(shard) as fd:
                while done < len(view):
                    got = os.preadv(fd, [view[done:]], entry["offset"] + done)
                    if not got:
                        raise corrupt(self.path, shard, "the file ends too early", path)
                    done += got
            self._check(shard, path, view)
        if buffer is not out:
            out[:] = widen(buffer, self.recipe.dtype)

    def mapped(self, shard: int, path: str) -> NDArray[Any]:
        """Return a dataset as a read-only, memory-mapped array; the mapping ends with the last reference to it."""
        entry = self.records[shard]["datasets"][path]
        dtype, shape = MEMORY_TYPES[entry["dtype"]], entry["shape"]
        if not entry["nbytes"]:
            return np.empty(shape, dtype)
        with self._opened(shard) as fd:
            data = mmap(fd, 0, access=ACCESS_READ)
        stored = np.frombuffer(data, dtype, math.prod(shape), entry["offset"]).reshape(shape)
        self._check(shard, path, stored.data.cast("B"))
        return stored

    @contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        record = self.records[shard]
        try:
            fd = os.open(self.path / "shards" / record["file"], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise corrupt(self.path, shard, "its file is gone") from None
        try:
            if os.fstat(fd).st_size != record["bytes"]:
                raise corrupt(self.path, shard, f"its file has {os.fstat(fd).st_size} bytes, not {record['bytes']}")
            yield fd
        finally:
            os.close(fd)

    def _check(self, shard: int, path: str, data: memoryview) -> None:
        """Compare a dataset's bytes with its record, once in the life of this object."""
        if self.level == "off" or (shard, path) in self._checked:
            return
        record = self.records[shard]
        if self.level == "full" and (shard, "") not in self._checked:
            problems = verify_shard(self.path, self.recipe, record)
            if problems:
                raise corrupt(self.path, shard, "; ".join(problems[:3]))
            self._checked.add((shard, ""))
        if xxhash.xxh3_128_hexdigest(data) != record["datasets"][path]["xxh3_128"]:
            raise corrupt(self.path, shard, "bytes that have another hash than its record says", path)
        self._checked.add((shard, path))
