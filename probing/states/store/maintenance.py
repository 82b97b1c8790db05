"""Repairs, merges, cleans and removes stores; changes only files named as in the format, and never a symbolic link."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probing.errors import CorruptShard, ProvenanceMismatch, StoreBusy, StoreError
from probing.states.store.commit_record import corrupt, load_record
from probing.states.store.file_ops import (
    LEASE_SECONDS,
    REAL_FILES,
    TEMPORARY,
    FileOps,
    is_abandoned,
    sync_folder,
    typed_errors,
)
from probing.states.store.format import StoreLayout, read_store_json, record_file
from probing.states.store.leases import FOLDER, LEASE, Leases
from probing.states.store.verify import verify_seal, verify_shard
from probing.states.store.writer import StoreWriter

GARBAGE_SECONDS = 24 * 3600
_SHARD = re.compile(r"s\d{6}\.[0-9a-f]{16}\.h5")
_RECORD = re.compile(r"s\d{6}\.json")
MOMENTS = "moments"  # sums that version 0.1 could keep beside the shards; nothing reads them
_MOMENTS_FILE = re.compile(r"[\w.\-]+\.json|[\w.\-]+\.[0-9a-f]{16}\.h5")
_BAD = re.compile(r"\.bad-\d+-s\d{6}\.json")


@dataclass(frozen=True)
class Garbage:
    """Describes a file of a store that is no longer needed.

    Attributes:
        path: path of the file.
        n_bytes: size of the file.
        reason: reason why the file is not needed.
    """

    path: Path
    n_bytes: int
    reason: str


def repair(path: Path | str, *, files: FileOps = REAL_FILES) -> list[str]:
    """Set aside every damaged commit record, and remove a seal that no longer fits; the next extraction computes those
    shards again.

    Returns:
        Names of the damaged records, and `seal.json` if it was removed; empty if nothing was damaged.

    Raises:
        NotAStore: the directory has no valid store.json.
    """
    path = Path(path)
    with typed_errors(path):
        _, recipe = read_store_json(path)
        damaged = [shard for shard in range(recipe.n_shards) if _is_damaged(path, recipe, shard)]
        names = [record_file(shard) for shard in damaged]
        seal = ["seal.json"] if (names or verify_seal(path, recipe)) and (path / "seal.json").exists() else []
        for _ in seal:  # first: a seal never outlives a record that it counts
            files.unlink(path / "seal.json")
            sync_folder(files, path)
        for name in names:
            files.rename(path / "shards" / name, path / "shards" / f".bad-{int(files.clock())}-{name}")
        if names:
            sync_folder(files, path / "shards")
        return names + seal


def _is_damaged(path: Path, recipe: StoreLayout, shard: int) -> bool:
    try:
        record = load_record(path, recipe, shard)
    except CorruptShard:
        return True
    return record is not None and bool(verify_shard(path, recipe, record))


def merge(
    target: Path | str, source: Path | str, *, prefer_target: bool = False, files: FileOps = REAL_FILES
) -> list[int]:
    """Copy the committed shards that a store lacks from another store, after verifying each; seal the store if it is
    then complete.

    Args:
        target: directory of a store, or of one to be made.
        source: directory of another part of the same extraction; it is not changed.
        prefer_target: whether to keep the target's content of a shard that both have and that differs, as it may
            between kinds of device.
        files: file operations; tests replace them.

    Returns:
        The numbers of the shards copied.

    Raises:
        ProvenanceMismatch: the two are parts of different extractions.
        CorruptShard: a shard of the source is damaged.
        StoreError: a shard has different content in both stores and `prefer_target` is not set; nothing is copied.
    """
    target, source = Path(target), Path(source)
    with typed_errors(source):
        header, recipe = read_store_json(source)
        if (target / "store.json").exists() and read_store_json(target)[1].store_id != recipe.store_id:
            raise ProvenanceMismatch(
                "these are not parts of one extraction",
                needed=f"store_id {recipe.store_id[:16]}…",
                found=f"{read_store_json(target)[1].store_id[:16]}…",
                where=f"{target} and {source}",
                next_step="compare `probing store info` of both",
            )
        theirs = _records(source, recipe)
    writer = StoreWriter.open(
        target,
        identity=header["identity"],
        environment=header["environment"],
        files=files,
        allow_mixed_environment=True,  # nothing is computed here
    )
    ours = _records(target, recipe)
    differing = [
        shard for shard, record in theirs.items() if shard in ours and ours[shard]["sha256"] != record["sha256"]
    ]
    if differing and not prefer_target:
        raise StoreError(
            "some shards have two contents",
            needed="equal bytes where both stores have a shard",
            found=f"{len(differing)} that differ: {', '.join(map(str, differing[:5]))}",
            where=f"{target} and {source}",
            next_step="they may come from two kinds of device; add --prefer-first to keep those of the first store",
        )
    copied = [shard for shard in theirs if shard not in ours]
    for shard in copied:
        problems = verify_shard(source, recipe, theirs[shard])
        if problems:
            raise corrupt(source, shard, "; ".join(problems[:3]))
        writer.copy(shard, theirs[shard], (source / "shards" / theirs[shard]["file"]).read_bytes())
    if not writer.missing():
        writer.seal()
    return copied


def _records(path: Path, recipe: StoreLayout) -> dict[int, dict[str, Any]]:
    found = ((shard, load_record(path, recipe, shard)) for shard in range(recipe.n_shards))
    return {shard: record for shard, record in found if record is not None}


def garbage(path: Path | str, *, files: FileOps = REAL_FILES) -> list[Garbage]:
    """Return the files that are not needed: shards still without a record after a day, temporary files of dead writers,
    old bad records, expired leases, and the moments of version 0.1.

    Raises:
        NotAStore: the directory has no valid store.json.
    """
    path = Path(path)
    with typed_errors(path):
        _, recipe = read_store_json(path)
        found = [*_garbage_in(path, set(), set(), files)]
        if (path / "shards").is_dir() and not (path / "shards").is_symlink():
            kept, unsure = _referenced(path, recipe)
            found += _garbage_in(path / "shards", kept, unsure, files)
        if (path / FOLDER).is_dir() and not (path / FOLDER).is_symlink():
            found += _garbage_in(path / FOLDER, set(), set(), files)
            found += [
                Garbage(file, files.stat(file).st_size, "an expired lease") for file in Leases(path, files).expired()
            ]
        found += [
            Garbage(file, files.stat(file).st_size, "moments, which nothing reads any more")
            for file in _moments_files(path, files)
        ]
    return found


def _referenced(path: Path, recipe: StoreLayout) -> tuple[set[str], set[str]]:
    """Return the shard files that records name, and prefixes of those whose record cannot be read."""
    kept, unsure = set(), set()
    for shard in range(recipe.n_shards):
        try:
            record = load_record(path, recipe, shard)
        except CorruptShard:
            unsure.add(record_file(shard).removesuffix("json"))
            continue
        if record is not None:
            kept.add(record["file"])
    return kept, unsure


def _garbage_in(folder: Path, kept: set[str], unsure: set[str], files: FileOps) -> Iterator[Garbage]:
    for name in files.listdir(folder):
        file = folder / name
        if file.is_symlink() or not file.is_file():
            continue
        status = files.stat(file)
        is_old = _is_old(file, files)
        is_orphan = bool(_SHARD.fullmatch(name)) and name not in kept and not name.startswith(tuple(unsure))
        if is_orphan and is_old:
            yield Garbage(file, status.st_size, "no commit record names it")
        elif _BAD.fullmatch(name) and is_old:
            yield Garbage(file, status.st_size, "a damaged record that was set aside")
        elif TEMPORARY.fullmatch(name) and is_abandoned(files, file):
            yield Garbage(file, status.st_size, "a temporary file of a dead writer")


def _is_old(file: Path, files: FileOps) -> bool:
    return files.clock() - files.stat(file).st_mtime > GARBAGE_SECONDS


def collect(found: list[Garbage], *, files: FileOps = REAL_FILES) -> int:
    """Delete the files that `garbage` returned, and return the number of bytes freed."""
    for item in found:
        with typed_errors(item.path), suppress(FileNotFoundError):
            files.unlink(item.path)
    for folder in {item.path.parent for item in found}:
        sync_folder(files, folder)
    return sum(item.n_bytes for item in found)


def remove(path: Path | str, *, files: FileOps = REAL_FILES) -> list[str]:
    """Delete one store: its seal, its records, then its shards, and store.json last, so that an interrupted deletion
    can be repeated.

    Returns:
        Names of files that were not deleted because they are not part of the store.

    Raises:
        NotAStore: the directory has no valid store.json; nothing is deleted.
        StoreBusy: another process is writing to the store.
        StoreError: the store or its folder of shards is a symbolic link; nothing is deleted.
    """
    path = Path(path)
    with typed_errors(path):
        read_store_json(path)
        shards = path / "shards"
        if path.is_symlink() or shards.is_symlink():
            raise StoreError("a store is not removed through a symbolic link", found=str(path))
        inside = files.listdir(shards) if shards.is_dir() else []
        folders = [folder for folder in (shards, path / MOMENTS) if folder.is_dir() and not folder.is_symlink()]
        busy = [
            name
            for folder in folders
            for name in files.listdir(folder)
            if TEMPORARY.fullmatch(name) and not is_abandoned(files, folder / name)
        ]
        busy += [f"a lease of shard {shard} by {holder.host}" for shard, holder in Leases(path, files).held().items()]
        if busy:
            raise StoreBusy(
                "somebody is writing to this store",
                needed="no writer at work",
                found=busy[0],
                where=str(path),
                next_step=f"stop the extraction, or wait {LEASE_SECONDS // 60} minutes after it died elsewhere",
            )
        with suppress(FileNotFoundError):
            files.unlink(path / "seal.json")
            sync_folder(files, path)
        for pattern in (_RECORD, _SHARD, _BAD, TEMPORARY):
            for name in inside:
                if pattern.fullmatch(name) and not (shards / name).is_symlink():
                    files.unlink(shards / name)
        if shards.is_dir() and not files.listdir(shards):
            files.rmdir(shards)
        _remove_leases(path, files)
        _remove_moments(path, files)
        own = [name for name in files.listdir(path) if TEMPORARY.fullmatch(name)]
        left = [name for name in files.listdir(path) if name not in (*own, "store.json")]
        for name in (*own, "store.json"):
            with suppress(FileNotFoundError):
                files.unlink(path / name)
        if not left:
            files.rmdir(path)
            sync_folder(files, path.parent)
    return left


def _moments_files(path: Path, files: FileOps) -> list[Path]:
    folder = path / MOMENTS
    if not folder.is_dir() or folder.is_symlink():
        return []
    names = (n for n in files.listdir(folder) if _MOMENTS_FILE.fullmatch(n) or TEMPORARY.fullmatch(n))
    return [folder / name for name in names if not (folder / name).is_symlink()]


def _remove_moments(path: Path, files: FileOps) -> None:
    for file in _moments_files(path, files):
        files.unlink(file)
    folder = path / MOMENTS
    if folder.is_dir() and not folder.is_symlink() and not files.listdir(folder):
        files.rmdir(folder)


def _remove_leases(path: Path, files: FileOps) -> None:
    folder = path / FOLDER
    if not folder.is_dir() or folder.is_symlink():
        return
    for name in files.listdir(folder):
        if (LEASE.fullmatch(name) or TEMPORARY.fullmatch(name)) and not (folder / name).is_symlink():
            files.unlink(folder / name)
    if not files.listdir(folder):
        files.rmdir(folder)
