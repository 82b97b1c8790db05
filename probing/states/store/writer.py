"""StoreWriter: creates or opens a store and writes finished shards, each of which is valid once its record is
written.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from probing.errors import BadParameter, CorruptShard, DiskFull, NotAStore, ProvenanceMismatch, StoreError
from probing.provenance import differing_keys, value_at
from probing.states.store import commit_record
from probing.states.store.commit_record import (
    OPTIONAL,
    check_record,
    expected_datasets,
    incomplete,
    load_record,
    shard_attributes,
)
from probing.states.store.content import ShardContent, arrays_of, site_facts
from probing.states.store.file_ops import (
    REAL_FILES,
    FileOps,
    discard,
    make_folders,
    publish,
    replace,
    sweep,
    sync_folder,
    typed_errors,
    write_temporary,
)
from probing.states.store.format import (
    FORMAT,
    FORMAT_VERSION,
    MAX_SHARD_BYTES,
    StoreLayout,
    check_name,
    content_id,
    parse_signed,
    read_store_json,
    record_file,
    shard_file,
    signed_json,
)
from probing.states.store.image import build, describe

LIBRARIES = ("torch", "transformers")  # those that compute states


def refuse_foreign(path: Path) -> None:
    """Refuse a directory that holds anything besides the leftovers of an interrupted creation of a store.

    Raises:
        NotAStore: the directory holds other files and no store.
    """
    if not path.exists():
        return
    is_foreign = not path.is_dir() or any(not entry.name.startswith(".tmp-") for entry in path.iterdir())
    # Looked for last: another writer may have created the store since its directory was listed.
    if is_foreign and not (path / "store.json").exists():
        raise NotAStore(
            "the directory is not a store, and is not empty",
            needed="an empty or new directory, or a store",
            found=str(path),
            next_step="choose another directory; nothing here was touched",
        )


def publish_identity(
    files: FileOps, path: Path, identity: dict[str, Any], recipe: StoreLayout, environment: Mapping[str, Any]
) -> None:
    """Write store.json; if there is one already, check that its identity is the same.

    Raises:
        BadParameter: the identity is larger than readers accept; nothing is written.
        ProvenanceMismatch: the existing store has another identity; the message names the keys that differ.
    """
    data = signed_json(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "store_id": recipe.store_id,
            "identity": identity,
            "environment": environment,
        }
    )
    make_folders(files, path)
    if not (path / "store.json").exists() and publish(files, path, "store.json", data):
        return
    found, theirs = read_store_json(path)
    if theirs.store_id == recipe.store_id:
        sync_folder(files, path)
        return
    ours = parse_signed(signed_json({"identity": identity}))["identity"]
    keys = differing_keys(ours, found["identity"])
    raise ProvenanceMismatch(
        "the store was made from something else",
        needed=f"the same {', '.join(keys)}",
        found="; ".join(f"{key}: {value_at(found['identity'], key)}, asked {value_at(ours, key)}" for key in keys[:5]),
        where=str(path),
        next_step="choose another directory, or remove this store",
    )


def refuse_mixed(path: Path, environment: Mapping[str, Any]) -> None:
    """Refuse to continue a store with a minor version of torch or transformers other than at its beginning, since last
    bits may differ.

    Raises:
        ProvenanceMismatch: a minor version differs; the message names both versions.
    """
    begun, here = (_minor_versions(one) for one in (read_store_json(path)[0].get("environment"), environment))
    differing = [name for name in LIBRARIES if name in begun and name in here and begun[name] != here[name]]
    if differing:
        raise ProvenanceMismatch(
            "the store was begun with other versions of its libraries",
            needed=", ".join(f"{name} {begun[name]}" for name in differing),
            found=", ".join(f"{name} {here[name]}" for name in differing),
            where=str(path),
            next_step="install those versions, or add --allow-mixed-environment: each shard records what made it",
        )


def _minor_versions(environment: Any) -> dict[str, str]:
    versions = environment.get("versions") if isinstance(environment, Mapping) else None
    known = versions.items() if isinstance(versions, Mapping) else ()
    return {name: ".".join(str(version).split("+")[0].split(".")[:2]) for name, version in known}


_SPARE_BYTES = 16 << 20
_LOG = logging.getLogger(__name__)


class StoreWriter:
    """Writes the shards of one store; any number of writers, in any processes, may share a store.

    Attributes:
        path: directory of the store.
        n_shards: number of planned shards.
        withdrawn: numbers of shards whose damaged commit records were set aside when the store was opened.
    """

    def __init__(self, path: Path, recipe: StoreLayout, environment: Mapping[str, Any], files: FileOps) -> None:
        self.path = path
        self.n_shards = recipe.n_shards
        self.withdrawn: tuple[int, ...] = ()
        self._recipe = recipe
        self._environment = environment
        self._files = files
        self._done: dict[int, dict[str, Any]] = {}

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        identity: dict[str, Any],
        environment: dict[str, Any],
        files: FileOps = REAL_FILES,
        allow_mixed_environment: bool = False,
    ) -> StoreWriter:
        """Create a store, or continue one with the same identity, and return its writer.

        Args:
            path: directory of the store; its parents are made.
            identity: everything that determines the numbers: the blocks model, tokenizer, corpus, extraction and plan.
            environment: library versions and other facts, recorded for information.
            files: file operations; tests replace them.
            allow_mixed_environment: whether to continue with another minor version of torch or transformers; the record
                of each shard has its versions.

        Raises:
            BadParameter: the name of the directory or the identity is not valid.
            NotAStore: the directory holds other files; it is not changed.
            ProvenanceMismatch: the directory holds a store with another identity (the message names the keys that
                differ), or, unless allowed, an unfinished one begun with another minor version of torch or
                transformers.
            StoreError: the store's folder of shards is a symbolic link.
            DiskFull: there is no room.
        """
        path = Path(path)
        check_name(path)
        recipe = StoreLayout.of(identity)
        refuse_foreign(path)
        if (path / "shards").is_symlink():
            raise StoreError(
                "a store is not written through a symbolic link",
                found=str(path / "shards"),
                next_step="make the whole store a link, or move it",
            )
        with typed_errors(path):
            publish_identity(files, path, identity, recipe, environment)
            make_folders(files, path / "shards")
            writer = cls(path, recipe, environment, files)
            sweep(files, path)
            sweep(files, path / "shards")
            missing = writer.missing()
            if missing and not allow_mixed_environment:
                refuse_mixed(path, environment)
            if missing:
                writer._drop_seal()  # first: a seal never outlives a record that it counts
            writer.withdrawn = tuple(k for k in missing if writer._withdraw_if_damaged(k))
        return writer

    def missing(self) -> list[int]:
        """Return the numbers of the shards without a valid commit record."""
        return [shard for shard in range(self.n_shards) if not self._is_done(shard)]

    def is_done(self, shard: int) -> bool:
        """Return whether a shard has a valid commit record, from this or another writer."""
        return self._is_done(shard)

    def preflight(self, n_bytes: int) -> None:
        """Check that `n_bytes` fit on the disk before they are written.

        Args:
            n_bytes: number of bytes about to be written.

        Raises:
            DiskFull: fewer bytes are available than 1.05 · `n_bytes` plus a reserve of 16 MiB.
        """
        needed = int(1.05 * n_bytes) + _SPARE_BYTES
        with typed_errors(self.path):
            free = self._files.free_bytes(self.path)
        if free < needed:
            raise DiskFull(
                "not enough room on the disk",
                needed=f"{needed:,} bytes",
                found=f"{free:,} bytes available",
                where=str(self.path),
                next_step="free some space and run the same command again: what is committed is kept",
            )

    def commit(self, shard: int, content: ShardContent) -> None:
        """Write one shard: its file, then its commit record, which makes it final. When this returns, both are on the
        disk. Nothing is done if another writer was first.

        Raises:
            BadParameter: the content contradicts the plan, the identity or itself; nothing is written.
            NonFiniteStates: states are NaN or infinite; nothing is written.
            DiskFull: there is no room; no partial file remains.
        """
        if not 0 <= shard < self.n_shards:
            raise BadParameter("no such shard", needed=f"0 to {self.n_shards - 1}", found=str(shard))
        if self._is_done(shard):
            return
        arrays = arrays_of(content, self._recipe, shard)
        facts = site_facts(content, self._recipe)
        self.preflight(sum(array.nbytes + 4096 for array in arrays.values()))
        dtypes = {path: kind for path, (kind, _) in {**expected_datasets(self._recipe, 0, 0), **OPTIONAL}.items()}
        attributes = shard_attributes(self._recipe, shard, len(arrays["/rows/example"]), facts)
        image = build(arrays, dtypes, attributes)
        if len(image) > MAX_SHARD_BYTES:
            raise BadParameter("the shard is too large", needed="at most 1 GiB", found=f"{len(image):,} bytes")
        sha256 = image.sha256()
        record = {
            "store_id": self._recipe.store_id,
            "shard": shard,
            "file": shard_file(shard, sha256),
            "bytes": len(image),
            "sha256": sha256,
            "n_rows": len(arrays["/rows/example"]),
            "examples": list(self._recipe.span(shard)),
            "datasets": describe(image, arrays, dtypes),
            "sites": facts,
            "skipped": [[int(example), reason] for example, reason in content.skipped],
            "produced": {**self._environment, "time": _now()},
            **commit_record.entries(content.missing_words),
        }
        if content.windowed:
            record["windowed"] = [[int(example), int(count)] for example, count in content.windowed]
        if content.pieces is not None:
            record |= {"pieces": content.pieces, "inputs": [list(entry) for entry in content.inputs]}
        check_record(record, self._recipe, shard)
        signed_json(record)  # refused before anything is written, if no reader would take it
        with typed_errors(self.path):
            self._write(shard, image.buffers, record)

    def copy(self, shard: int, record: dict[str, Any], data: bytes) -> None:
        """Commit a shard of another part of the same extraction, copied byte for byte.

        Args:
            shard: number of the shard.
            record: its commit record, which was already checked.
            data: bytes of its file.

        Raises:
            CorruptShard: the bytes are not those of the record.
            DiskFull: there is no room; no partial file remains.
        """
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise CorruptShard(f"shard {shard} changed while it was copied", where=record["file"])
        self.preflight(len(data))
        with typed_errors(self.path):
            self._write(shard, [memoryview(data)], record)

    def seal(self) -> str:
        """Write seal.json, with all records (if the file does not become too large) and the content id.

        Returns:
            The content id.

        Raises:
            IncompleteStore: shards are missing.
        """
        missing = self.missing()
        if missing:
            raise incomplete(self.path, self.n_shards - len(missing), self.n_shards, role=self._recipe.role)
        identifier = content_id(self._done)
        body = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "store_id": self._recipe.store_id,
            "content_id": identifier,
        }
        try:
            data = signed_json(body | {"records": [self._done[shard] for shard in range(self.n_shards)]})
        except BadParameter:  # of very many shards: what counts is the content id
            data = signed_json(body)
        target = self.path / "seal.json"
        with typed_errors(self.path):
            if not (target.is_file() and target.read_bytes() == data):
                temporary = write_temporary(self._files, self.path, data)
                try:
                    replace(self._files, temporary, target, data)
                finally:
                    discard(self._files, temporary)
                sync_folder(self._files, self.path)
        return identifier

    def _write(self, shard: int, buffers: list[memoryview], record: dict[str, Any]) -> None:
        folder = self.path / "shards"
        temporary = write_temporary(self._files, folder, *buffers)
        try:
            replace(self._files, temporary, folder / record["file"], *buffers)
        except BaseException:
            discard(self._files, temporary)
            raise
        sync_folder(self._files, folder)
        if not publish(self._files, folder, record_file(shard), signed_json(record)):
            self._adopt(shard, record)
        self._done[shard] = self._done.get(shard, record)

    def _adopt(self, shard: int, record: dict[str, Any]) -> None:
        """Keep another writer's record if it is sound, else set it aside and publish this writer's."""
        if self._withdraw_if_damaged(shard):
            publish(self._files, self.path / "shards", record_file(shard), signed_json(record))
        if not self._is_done(shard):
            raise StoreError(
                "the commit record cannot be published", where=str(self.path / "shards" / record_file(shard))
            )

    def _is_done(self, shard: int) -> bool:
        if shard not in self._done:
            with suppress(CorruptShard):
                record = load_record(self.path, self._recipe, shard)
                if record is not None:
                    self._done[shard] = record
        return shard in self._done

    def _withdraw_if_damaged(self, shard: int) -> bool:
        try:
            load_record(self.path, self._recipe, shard)
        except CorruptShard as error:
            folder, name = self.path / "shards", record_file(shard)
            with suppress(FileNotFoundError):
                self._files.rename(folder / name, folder / f".bad-{int(self._files.clock())}-{name}")
            sync_folder(self._files, folder)
            _LOG.warning("%s: %s; it is computed again", error.message, error.found)
            return True
        return False

    def _drop_seal(self) -> None:
        with suppress(FileNotFoundError):
            self._files.unlink(self.path / "seal.json")
            sync_folder(self._files, self.path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
