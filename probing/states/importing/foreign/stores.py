"""A `probing` store from elsewhere, in a child process: every byte compared and audited before anyone else reads it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from probing.errors import CorruptShard
from probing.states.importing.foreign.protocol import Sender
from probing.states.importing.foreign.sources import open_source
from probing.states.store.audit import refuse
from probing.states.store.commit_record import incomplete, load_record
from probing.states.store.format import read_store_json, record_file
from probing.states.store.verify import verify_shard


def read_store(path: Path, sender: Sender) -> None:
    """Verify a complete store, and send the SHA-256 of the JSON files that passed.

    Raises:
        NotAStore, UnsupportedFormat, IncompleteStore: it is no finished store of this format.
        CorruptShard: bytes differ from a commit record.
        UntrustedFile: a symbolic link, or HDF5 that breaks a rule.
    """
    for folder in (path, path / "shards"):
        if folder.is_symlink():
            refuse("no symbolic links", folder.name, "a symbolic link")
    sender.send("record", shard=-1, sha256=_sha256(path / "store.json"))
    _, recipe = read_store_json(path)
    for shard in range(recipe.n_shards):
        name = path / "shards" / record_file(shard)
        if not name.exists():
            raise incomplete(path, shard, recipe.n_shards)
        sha256 = _sha256(name)
        record = load_record(path, recipe, shard)
        if record is None:
            raise incomplete(path, shard, recipe.n_shards)
        open_source(path / "shards" / record["file"]).stream.close()
        problems = verify_shard(path, recipe, record)
        if problems:
            raise CorruptShard(f"shard {shard} is damaged", needed="bytes as committed", found="; ".join(problems[:3]))
        sender.send("record", shard=shard, sha256=sha256)


def _sha256(path: Path) -> str:
    file = open_source(path)
    with file.stream as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
