"""The audit of an HDF5 file: every link, object, type and size is looked at before anything is followed or read.

A walk from the root, one path component at a time. HDF5 opens other files for external links, external storage and
virtual data sets, and loads code for filters it does not know; all four are found here in the file's own metadata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t, h5z

from probing.errors import UntrustedFile

_FILTERS = {h5z.FILTER_DEFLATE: "deflate", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}
_LAYOUTS = (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED)
_LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}
_NAME_BYTES = 1024


@dataclass(frozen=True)
class AuditLimits:
    """Holds the limits on what an HDF5 file from elsewhere may contain.

    Attributes:
        objects: number of groups and data sets.
        attributes: number of attributes of one object.
        attribute_bytes: size of one attribute.
        depth: number of path components.
        dataset_bytes, total_bytes: declared size of one data set, and of all.
        chunk_bytes: declared size of one chunk.
        free_bytes, ratio: a data set is refused as a decompression bomb if it declares more than `free_bytes` and more
            than `ratio` times what it stores.
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
    """Check that nothing in an opened file breaks a rule, without reading data, and return its data sets by path.

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
