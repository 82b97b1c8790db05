"""Moments on the disk: a content-named HDF5 file, then the record that names it and the shards it was made from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from probing.errors import BadParameter, CorruptShard, ProvenanceMismatch, StoreError, UnknownName
from probing.states.store.audit import AuditLimits
from probing.states.store.commit_record import check_datasets
from probing.states.store.file_ops import (
    REAL_FILES,
    FileOps,
    discard,
    make_folders,
    replace,
    sweep,
    sync_folder,
    typed_errors,
    write_temporary,
)
from probing.states.store.format import FORMAT_VERSION, MEMORY_TYPES, Recipe, parse_signed, signed_json
from probing.states.store.image import build, describe
from probing.states.store.moments import RULE, Moments
from probing.states.store.verify import verify_file

FOLDER = "moments"
FORMAT = "probing-moments"
MAX_BYTES = 1 << 33
_SELECTION = re.compile(r"[a-z0-9_]{1,32}")
_STEM = r"[a-z][a-z0-9_]{0,31}(?:\.(?:0|[1-9][0-9]{0,3}))?\.[a-z0-9_]{1,32}"
RECORD = re.compile(rf"({_STEM})\.json")
FILE = re.compile(rf"({_STEM})\.[0-9a-f]{{16}}\.h5")
_DATASETS: dict[str, tuple[str, tuple[int | str | None, ...]]] = {
    "/count": ("u8", (1,)), "/sum": ("float64", ("D",)), "/cross": ("float64", ("D", "D")),
    "/selection/example": ("u4", (None,)), "/selection/empty": ("u4", (None,)),
}  # fmt: skip

Records = Mapping[int, Mapping[str, Any]]


def check_selection(name: str) -> str:
    """Return the name of a selection, if it can be part of a file name.

    Raises:
        BadParameter: other characters, or too long.
    """
    if not _SELECTION.fullmatch(name):
        raise BadParameter(
            f"{name!r} cannot name a selection", needed="small letters, digits and _, at most 32", found=repr(name),
            next_step="rename the split",
        )  # fmt: skip
    return name


def shards_of(records: Records) -> list[list[Any]]:
    """Return what moments depend on: number and SHA-256 of every committed shard, in order."""
    return [[shard, records[shard]["sha256"]] for shard in sorted(records)]


@dataclass(frozen=True)
class MomentsFolder:
    """The moments of one store.

    Attributes:
        store: directory of the store.
        recipe: of the store.
        records: its commit records.
    """

    store: Path
    recipe: Recipe
    records: Records

    @property
    def path(self) -> Path:
        """Folder of the files."""
        return self.store / FOLDER

    @property
    def exists(self) -> bool:
        """Whether there is such a folder, and not a link to one."""
        return self.path.is_dir() and not self.path.is_symlink()

    def names(self) -> list[tuple[str, str]]:
        """Return (site, selection) of every record there is, good or bad."""
        return [(site, selection) for site, _, selection in (stem.rpartition(".") for stem in self._stems())]

    def _stems(self) -> Iterator[str]:
        if self.exists:
            for file in sorted(self.path.iterdir()):
                match = RECORD.fullmatch(file.name)
                if match and file.is_file() and not file.is_symlink():
                    yield match[1]

    def record(self, site: str, selection: str) -> dict[str, Any]:
        """Return the checked record of moments that were made from the shards that are there now.

        Raises:
            UnknownName: no such moments, with the nearest way to get them.
            CorruptShard: the record is damaged, or its file is missing or of another size.
            ProvenanceMismatch: a shard has changed or is missing since they were made.
        """
        record = self._unchecked(site, selection)
        if record["shards"] != shards_of(self.records):
            raise ProvenanceMismatch(
                f"the moments of {site} are stale", needed="moments of the shards that are committed now",
                found="moments of other shards", where=str(self.path / f"{site}.{selection}.json"),
                next_step="gather them again: `probing store moments STORE --corpus … --selection …`",
            )  # fmt: skip
        return record

    def _unchecked(self, site: str, selection: str) -> dict[str, Any]:
        file = self.path / f"{site}.{check_selection(selection)}.json"
        with typed_errors(file):
            data = file.read_bytes() if file.exists() else None
        if data is None:
            known = ", ".join(f"{s} ({name})" for s, name in self.names()[:10]) or "none"
            raise UnknownName(
                f"there are no moments of {site} over {selection!r}", needed="moments that were gathered",
                found=known, where=str(self.store),
                next_step="run `probing store moments STORE --corpus … --selection …`",
            )  # fmt: skip
        try:
            record = parse_signed(data)
            self._check(record, site, selection)
            size = (self.path / record["file"]).stat().st_size
        except (ValueError, FileNotFoundError) as error:
            raise self._damaged(site, selection, str(error)) from None
        if size != record["bytes"]:
            raise self._damaged(site, selection, f"its file has {size} bytes, not {record['bytes']}")
        return record

    def _check(self, record: Mapping[str, Any], site: str, selection: str) -> None:
        wanted = {"store_id": self.recipe.store_id, "site": site, "selection": selection, "format": FORMAT}
        for key, value in wanted.items():
            if record.get(key) != value:
                raise ValueError(f"its {key} is {record.get(key)!r}, not {value!r}")
        sha256, n_bytes, shards = record.get("sha256"), record.get("bytes"), record.get("shards")
        if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError("it has no sha256")
        if record.get("file") != f"{site}.{selection}.{sha256[:16]}.h5":
            raise ValueError("its file is not the name of its content")
        if type(n_bytes) is not int or not 0 <= n_bytes <= MAX_BYTES:
            raise ValueError("its bytes is out of range")
        if not isinstance(shards, list) or not all(_names_a_shard(entry) for entry in shards):
            raise ValueError("it does not say which shards it was made from")
        check_datasets(record.get("datasets"), _DATASETS, n_bytes)

    def _damaged(self, site: str, selection: str, found: str) -> CorruptShard:
        return CorruptShard(
            f"the moments of {site} over {selection!r} are damaged", needed="bytes equal to those committed",
            found=found, where=str(self.path / f"{site}.{selection}.json"),
            next_step="run `probing store verify --repair` and gather them again; nothing else depends on them",
        )  # fmt: skip

    def load(self, site: str, selection: str, *, checked: bool = True) -> Moments:
        """Return the moments from the disk, compared with their record unless `checked` is false.

        Raises:
            UnknownName, CorruptShard, ProvenanceMismatch: as `record`.
            StoreError: the disk cannot be read.
        """
        record = self.record(site, selection)
        arrays: dict[str, Any] = {}
        with typed_errors(self.path), (self.path / record["file"]).open("rb") as file:
            for path, entry in record["datasets"].items():
                data = bytearray(entry["nbytes"])
                file.seek(entry["offset"])
                if file.readinto(data) != len(data) or (
                    checked and xxhash.xxh3_128_hexdigest(data) != entry["xxh3_128"]
                ):
                    raise self._damaged(site, selection, f"{path} has another hash than its record says")
                arrays[path] = np.frombuffer(data, MEMORY_TYPES[entry["dtype"]]).reshape(entry["shape"])
        examples, empty = (arrays[f"/selection/{name}"].astype(np.int64) for name in ("example", "empty"))
        return Moments(site, selection, int(arrays["/count"][0]), arrays["/sum"], arrays["/cross"], examples, empty)

    def write(self, moments: Moments, environment: Mapping[str, Any], files: FileOps = REAL_FILES) -> None:
        """Publish moments: the file under its content name, then the record in place of any other.

        Raises:
            DiskFull: no room; nothing is left behind.
        """
        dtypes = {path: kind for path, (kind, _) in _DATASETS.items()}
        arrays = {
            "/count": np.array([moments.count]), "/sum": moments.total, "/cross": moments.cross,
            "/selection/example": moments.examples, "/selection/empty": moments.empty,
        }  # fmt: skip
        arrays = {path: np.ascontiguousarray(array, MEMORY_TYPES[dtypes[path]]) for path, array in arrays.items()}
        image = build(arrays, dtypes, self._attributes(moments.site, moments.selection))
        stem, sha256 = f"{moments.site}.{moments.selection}", image.sha256()
        record = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "store_id": self.recipe.store_id, "rule": RULE,
            "site": moments.site, "selection": moments.selection, "n_rows": moments.count,
            "shards": shards_of(self.records), "file": f"{stem}.{sha256[:16]}.h5", "bytes": len(image),
            "sha256": sha256, "datasets": describe(image, arrays, dtypes),
            "produced": {**environment, "time": datetime.now(UTC).isoformat(timespec="seconds")},
        }  # fmt: skip
        self._check(record, moments.site, moments.selection)
        self._publish(files, record, *image.buffers)

    def copy(self, record: dict[str, Any], data: bytes, files: FileOps = REAL_FILES) -> None:
        """Publish moments of another part of the same extraction, byte for byte."""
        self._publish(files, record, memoryview(data))

    def _publish(self, files: FileOps, record: dict[str, Any], *buffers: memoryview) -> None:
        if self.path.is_symlink():
            raise StoreError("moments are not written through a symbolic link", found=str(self.path))
        with typed_errors(self.path):
            make_folders(files, self.path)
            sweep(files, self.path)
            name = f"{record['site']}.{record['selection']}.json"
            for target, parts in ((record["file"], buffers), (name, (memoryview(signed_json(record)),))):
                temporary = write_temporary(files, self.path, *parts)
                try:
                    replace(files, temporary, self.path / target, *parts)
                except BaseException:
                    discard(files, temporary)
                    raise
                sync_folder(files, self.path)

    def _attributes(self, site: str, selection: str) -> dict[str, dict[str, Any]]:
        store_id = self.recipe.store_id
        return {"/": {"format": FORMAT, "format_version": FORMAT_VERSION, "store_id": store_id, "site": site,
                      "selection": selection}}  # fmt: skip

    def problems(self, site: str, selection: str) -> list[str]:
        """Return what is wrong with moments: damage, and a committed shard that is no longer the one they were made
        from.
        """
        stem = f"{FOLDER}/{site}.{selection}"
        try:
            record = self._unchecked(site, selection)
        except (CorruptShard, UnknownName) as error:
            return [f"{stem}: {error.found}"]
        if self._has_changed(record):
            return [f"{stem}: stale, for shards have changed since; `probing store verify --repair` removes it"]
        limits = AuditLimits(dataset_bytes=MAX_BYTES, total_bytes=MAX_BYTES)
        return verify_file(self.path / record["file"], record, self._attributes(site, selection), limits)

    def is_stale(self, site: str, selection: str) -> bool:
        """Return whether a shard that is committed now differs from the one that these moments were made from."""
        try:
            return self._has_changed(self._unchecked(site, selection))
        except (CorruptShard, UnknownName):
            return False

    def files_named(self) -> set[str]:
        """Return the HDF5 files that records name."""
        found = set()
        for name in self.names():
            with suppress(CorruptShard, UnknownName):
                found.add(str(self._unchecked(*name)["file"]))
        return found

    def _has_changed(self, record: Mapping[str, Any]) -> bool:
        made_from = {tuple(entry) for entry in record["shards"]}
        return any(tuple(entry) not in made_from for entry in shards_of(self.records))


def _names_a_shard(entry: Any) -> bool:
    return isinstance(entry, list) and [type(part) for part in entry] == [int, str]
