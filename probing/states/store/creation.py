"""The creation of a store: store.json is published once, and compared ever after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.errors import NotAStore, ProvenanceMismatch
from probing.provenance import differing_keys, value_at
from probing.states.store.file_ops import FileOps, make_folders, publish, sync_folder
from probing.states.store.format import FORMAT, FORMAT_VERSION, Recipe, parse_signed, read_store_json, signed_json

LIBRARIES = ("torch", "transformers")  # those that compute states


def refuse_foreign(path: Path) -> None:
    """Leave alone a directory that holds more than the leftovers of an interrupted creation.

    Raises:
        NotAStore: it is somebody else's.
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
    files: FileOps, path: Path, identity: dict[str, Any], recipe: Recipe, environment: Mapping[str, Any]
) -> None:
    """Write store.json, or compare the identity with the store.json that is there.

    Raises:
        BadParameter: an identity of more than a reader takes; nothing is made.
        ProvenanceMismatch: another identity, naming the keys that differ.
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
    """Refuse to go on with libraries whose last bits may differ from those the store was begun with.

    Raises:
        ProvenanceMismatch: another minor version, naming both.
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
