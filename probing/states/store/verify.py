"""Verifies a store: the checksums of each shard, and the consistency of the whole store."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal, NoReturn

import h5py
import numpy as np
import xxhash
from h5py import h5a, h5d, h5f, h5g, h5l, h5o, h5s, h5t, h5z
from numpy.typing import NDArray

from probing.errors import CorruptShard, UntrustedFile
from probing.states.store.commit_record import corrupt, load_record, shard_attributes
from probing.states.store.format import MAX_SHARD_BYTES, MEMORY_TYPES, StoreLayout, content_id, parse_signed, widen
from probing.states.store.image import FILE_TYPES

_FILTERS = {h5z.FILTER_DEFLATE: "deflate", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}
_LAYOUTS = (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED)
_LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}
_NAME_BYTES = 1024


@dataclass(frozen=True)
class AuditLimits:
    """Holds the limits on the content of an untrusted HDF5 file.

    Attributes:
        objects: number of groups and data sets.
        attributes: number of attributes of one object.
        attribute_bytes: size of one attribute.
        depth: number of path components.
        dataset_bytes, total_bytes: declared size of one data set, and of all.
        chunk_bytes: declared size of one chunk.
        free_bytes, ratio: a data set is refused as a decompression bomb if its declared size exceeds both `free_bytes`
            and `ratio` times its stored size.
    """

    objects: int = 10_000
    attributes: int = 64
    attribute_bytes: int = 1 << 20
    depth: int = 16
    dataset_bytes: int = 64 << 30
    total_bytes: int = 256 << 30
    chunk_bytes: int = 256 << 20
    free_bytes: int = 64 << 20
    ratio: int = 1000


def audit(file: Any, *, limits: AuditLimits | None = None, text: str = "") -> dict[str, Any]:
    """Check the structure of an opened file against the limits, without reading data, and return its data sets by path.

    Args:
        file: an `h5py.File`, open for reading.
        limits: limits on its content.
        text: name of a data set in the root that may be a single string of variable length.

    Returns:
        Low-level data set identifiers by path.

    Raises:
        UntrustedFile: a rule is broken; the error names it and the object that breaks it.
    """
    return _Audit(limits or AuditLimits(), text).walk(file)


class _Audit:
    def __init__(self, limits: AuditLimits, text: str) -> None:
        self.limits = limits
        self.text = text
        self.seen: set[tuple[int, int]] = set()
        self.found: dict[str, Any] = {}
        self.declared = 0

    def walk(self, file: Any) -> dict[str, Any]:
        root = h5g.open(file.id, b"/")
        info = h5o.get_info(root)
        self.seen.add((info.fileno, info.addr))
        self._check_attributes(root, "/")
        waiting = [("", 0, root)]
        while waiting:
            place, depth, group = waiting.pop()
            self._check_room(place or "/", depth, group)
            for name in list(group):
                path = f"{place}/{name.decode('ascii', 'backslashreplace')}"
                item = self._opened(group, name, path)
                if isinstance(item, h5g.GroupID):
                    waiting.append((path, depth + 1, item))
                else:
                    self._check_dataset(item, path)
                    self.found[path] = item
        stored = file.id.get_filesize()
        if self._is_bomb(self.declared, stored):
            refuse(
                f"at most {self.limits.ratio:,} times what is stored, in sum",
                "/",
                f"{self.declared:,} bytes declared in a file of {stored:,}",
            )
        return self.found

    def _check_room(self, path: str, depth: int, group: Any) -> None:
        if depth >= self.limits.depth:
            refuse(f"at most {self.limits.depth} groups inside each other", path, "more")
        if group.get_num_objs() + len(self.seen) > self.limits.objects + 1:
            refuse(f"at most {self.limits.objects:,} objects", path, f"{group.get_num_objs():,} here")

    def _opened(self, group: Any, name: bytes, path: str) -> Any:
        """Return the object behind a name, if the name is a hard link to something not yet met."""
        if len(name) > _NAME_BYTES:
            refuse(f"names of at most {_NAME_BYTES} bytes", path[:80], f"{len(name)} bytes")
        link = group.links.get_info(name).type
        if link != h5l.TYPE_HARD:
            refuse("hard links only", path, _LINKS.get(link, "a user-defined link"))
        info = h5o.get_info(group, name)
        if info.type not in (h5o.TYPE_GROUP, h5o.TYPE_DATASET):
            refuse("groups and data sets only", path, "another kind of object")
        if (info.fileno, info.addr) in self.seen:
            refuse("one name for each object, and no cycles", path, "a second name")
        self.seen.add((info.fileno, info.addr))
        item = h5o.open(group, name)
        self._check_attributes(item, path)
        return item

    def _check_attributes(self, item: Any, path: str) -> None:
        count = h5a.get_num_attrs(item)
        if count > self.limits.attributes:
            refuse(f"at most {self.limits.attributes} attributes", path, str(count))
        for index in range(count):
            attribute = h5a.open(item, index=index)
            kind = attribute.get_type()
            is_text = isinstance(kind, h5t.TypeStringID) and not kind.is_variable_str()
            if not is_text and not _is_number(kind):
                refuse("attributes that are numbers or text of fixed length", path, type(kind).__name__)
            size = attribute.get_space().get_simple_extent_npoints() * kind.get_size()
            if size > self.limits.attribute_bytes:
                refuse(f"attributes of at most {self.limits.attribute_bytes:,} bytes", path, f"{size:,}")

    def _check_dataset(self, item: Any, path: str) -> None:
        # The layout comes first: asking a virtual data set for its shape can open the files it points at.
        plan = item.get_create_plist()
        if plan.get_layout() not in _LAYOUTS:
            refuse("no virtual data sets", path, "a virtual data set")
        if plan.get_external_count():
            refuse("no external storage", path, f"{plan.get_external_count()} outer files")
        for index in range(plan.get_nfilters()):
            code = plan.get_filter(index)[0]
            if code not in _FILTERS:
                refuse(f"no filters but {', '.join(_FILTERS.values())}", path, f"filter {code}")
        kind, space = item.get_type(), item.get_space()
        if space.get_simple_extent_type() not in (h5s.SIMPLE, h5s.SCALAR):
            refuse("data sets with a shape", path, "an empty one")
        if path == f"/{self.text}" and _is_one_text(kind, space):
            return
        if not _is_number(kind):
            refuse("data sets of integers or floats", path, _type_name(kind))
        self._check_size(item, plan, path, math.prod(space.shape) * kind.get_size())

    def _check_size(self, item: Any, plan: Any, path: str, size: int) -> None:
        limits = self.limits
        if size > limits.dataset_bytes:
            refuse(f"at most {limits.dataset_bytes:,} bytes in a data set", path, f"{size:,} declared")
        self.declared += size
        if self.declared > limits.total_bytes:
            refuse(f"at most {limits.total_bytes:,} bytes in all", path, f"{self.declared:,} declared up to here")
        stored = item.get_storage_size()
        if self._is_bomb(size, stored):
            refuse(
                f"at most {limits.ratio:,} times what is stored", path, f"{size:,} bytes declared, {stored:,} stored"
            )
        if size and not stored:
            refuse("data sets that were written", path, f"{size:,} bytes declared, none stored")
        if plan.get_layout() == h5d.CHUNKED:
            chunk = math.prod(plan.get_chunk()) * item.get_type().get_size()
            if chunk > limits.chunk_bytes:
                refuse(f"chunks of at most {limits.chunk_bytes:,} bytes", path, f"{chunk:,}")

    def _is_bomb(self, declared: int, stored: int) -> bool:
        return declared > self.limits.free_bytes and declared > self.limits.ratio * stored


def refuse(rule: str, path: str, found: str) -> NoReturn:
    """Raise the error for an object that breaks a rule.

    Raises:
        UntrustedFile: always.
    """
    raise UntrustedFile(
        "the file is not trusted",
        needed=rule,
        found=found,
        where=path,
        next_step="nothing of it was read; write it anew with plain data sets, or ask where it comes from",
    )


def _is_number(kind: Any) -> bool:
    """Return whether a type is an integer of 1, 2, 4 or 8 bytes or a float of 2, 4 or 8, whose bits all count."""
    if isinstance(kind, h5t.TypeIntegerID):
        return kind.get_size() in (1, 2, 4, 8) and kind.get_precision() == 8 * kind.get_size()
    return isinstance(kind, h5t.TypeFloatID) and kind.get_size() in (2, 4, 8)


def _is_one_text(kind: Any, space: Any) -> bool:
    return isinstance(kind, h5t.TypeStringID) and space.shape in ((), (1,))


def _type_name(kind: Any) -> str:
    if isinstance(kind, h5t.TypeStringID):
        return "text of variable length" if kind.is_variable_str() else "text"
    return type(kind).__name__.removeprefix("Type").removesuffix("ID").lower()


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
        level: degree of verification at a first read (`off`, `fast` or `full`, see `Store.open`).
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
        """Return a dataset as a read-only, memory-mapped array; the memory mapping is closed with the last reference to
        the array.
        """
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
