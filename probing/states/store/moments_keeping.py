"""Upkeep of moments when a store is repaired, merged, cleaned or removed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from probing.errors import CorruptShard, ProvenanceMismatch
from probing.states.store.commit_record import load_record
from probing.states.store.file_ops import TEMPORARY, FileOps, sync_folder
from probing.states.store.format import Recipe
from probing.states.store.moments_files import FILE, RECORD, MomentsFolder, shards_of


def folder_of(path: Path, recipe: Recipe) -> MomentsFolder:
    """Return the moments of a store, beside those of its shards that can be read."""
    records = {}
    for shard in range(recipe.n_shards):
        with suppress(CorruptShard):
            record = load_record(path, recipe, shard)
            if record is not None:
                records[shard] = record
    return MomentsFolder(path, recipe, records)


def withdraw(folder: MomentsFolder, files: FileOps) -> list[str]:
    """Delete the records of moments that are damaged or stale, and return their names: moments are made again from
    shards.
    """
    bad = [f"{site}.{selection}.json" for site, selection in folder.names() if folder.problems(site, selection)]
    for name in bad:
        files.unlink(folder.path / name)
    if bad:
        sync_folder(files, folder.path)
    return [f"{folder.path.name}/{name}" for name in bad]


def copy_missing(ours: MomentsFolder, theirs: MomentsFolder, files: FileOps) -> None:
    """Take over the moments that a store lacks, if they are sound and were made from the very same shards."""
    for site, selection in sorted(set(theirs.names()) - set(ours.names())):
        with suppress(ProvenanceMismatch, CorruptShard):
            record = theirs.record(site, selection)
            if record["shards"] == shards_of(ours.records) and not theirs.problems(site, selection):
                ours.copy(record, (theirs.path / record["file"]).read_bytes(), files)


def in_use(folder: MomentsFolder) -> tuple[set[str], set[str], list[Path]]:
    """Return the files that records name, prefixes of those whose record cannot be read, and the records that are
    stale.
    """
    stale = {f"{site}.{selection}." for site, selection in folder.names() if folder.is_stale(site, selection)}
    kept = {name for name in folder.files_named() if not name.startswith(tuple(stale))}
    readable = stale | {name[: -len("0123456789abcdef.h5")] for name in kept}
    unsure = {f"{site}.{selection}." for site, selection in folder.names()} - readable
    return kept, unsure, [folder.path / f"{stem}json" for stem in sorted(stale)]


def remove_all(folder: Path, files: FileOps) -> None:
    """Delete moments, records first; what is not of the format stays, and the folder with it."""
    if not folder.is_dir() or folder.is_symlink():
        return
    inside = files.listdir(folder)
    for pattern in (RECORD, FILE, TEMPORARY):
        for name in inside:
            if pattern.fullmatch(name) and not (folder / name).is_symlink():
                files.unlink(folder / name)
    if not files.listdir(folder):
        files.rmdir(folder)
