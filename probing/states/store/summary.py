"""The summary of a store, for listings; it never reads a state."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from probing.errors import CorruptShard, StoreError
from probing.models.site import Site
from probing.states.store.commit_record import counts, load_record, unknown_share
from probing.states.store.format import Recipe, content_id, read_store_json
from probing.states.store.leases import Leases
from probing.states.store.writer import LIBRARIES


def store_info(path: Path | str) -> dict[str, Any]:
    """Return model, corpus, sites, progress, size, what was left out and why, the largest magnitude by site, and the
    missing shards: which examples, and which process computes them just now.

    Raises:
        NotAStore: no valid store.json.
    """
    path = Path(path)
    header, recipe = read_store_json(path)
    identity, records, damaged = header["identity"], [], []
    for shard in range(recipe.n_shards):
        try:
            record = load_record(path, recipe, shard)
        except CorruptShard:
            damaged.append(shard)
            continue
        if record is not None:
            records.append(record)
    info = {
        "path": str(path),
        "model": _field(identity, "model", "source"),
        "corpus": _field(identity, "corpus", "source"),
        "sites": sorted(recipe.sites, key=lambda name: Site.parse(name).order),
        "rows": f"position:{','.join(recipe.positions)}"
        if recipe.positions
        else _field(identity, "extraction", "rows"),
        "role": recipe.role,
        "dtype": recipe.dtype,
        "n_rows": sum(record["n_rows"] for record in records),
        "shards_done": len(records),
        "shards_planned": recipe.n_shards,
        "bytes": sum(record["bytes"] for record in records),
        "skipped": dict(Counter(entry[-1] for record in records for entry in record["skipped"])),
        "missing_words": dict(sum(map(counts, records), Counter[str]())),
        "unknown_pieces": unknown_share(records),
        "absmax": {site: _absmax(site, records) for site in recipe.sites},
        "environments": _environments(records),
        "store_id": recipe.store_id,
        "content_id": content_id({record["shard"]: record for record in records}),
    }
    windowed = sum(len(record.get("windowed", ())) for record in records)
    info |= {"read_in_windows": windowed} if windowed else {}
    missing = set(range(recipe.n_shards)) - {record["shard"] for record in records}
    info |= {"missing": _missing_units(path, recipe, missing)} if missing else {}
    imported = _field(header, "environment", "imported")
    info |= {"imported": imported} if imported else {}
    return info | ({"damaged_shards": damaged} if damaged else {})


def _missing_units(path: Path, recipe: Recipe, shards: set[int]) -> list[dict[str, Any]]:
    """Return each shard that is not there: its examples (first, last), and the process that claims to compute it."""
    held = Leases(path).held()
    found = []
    for shard in sorted(shards):
        first, end = recipe.span(shard)
        holder = held.get(shard)
        lease = None if holder is None else {"host": holder.host, "pid": holder.pid, "seconds": round(holder.age)}
        found.append({"shard": shard, "examples": [first, end - 1], "lease": lease})
    return found


def list_stores(root: Path | str) -> list[dict[str, Any]]:
    """Return `store_info` of a store, or of every store up to two directories below `root`, by path.

    A store that cannot be read has only `path` and `problem`.
    """
    root = Path(root)
    found = [root / "store.json"] if (root / "store.json").is_file() else []
    for pattern in ("*/store.json", "*/*/store.json"):
        found += [] if found and found[0].parent == root else sorted(root.glob(pattern))
    return [_info_or_problem(file.parent) for file in sorted(found)]


def _info_or_problem(path: Path) -> dict[str, Any]:
    try:
        return store_info(path)
    except StoreError as error:
        return {"path": str(path), "problem": error.message}


def _environments(records: list[dict[str, Any]]) -> list[str]:
    """Return the environments that computed the shards, that of most shards first: more than one where a store was
    resumed elsewhere.
    """
    counts = Counter(_environment(record.get("produced")) for record in records)
    return [f"{count} shard{'s' if count > 1 else ''}: {name}" for name, count in counts.most_common() if name]


def _environment(produced: Any) -> str:
    facts: dict[str, Any] = produced if isinstance(produced, dict) else {}
    given = facts.get("versions")
    versions: dict[str, Any] = given if isinstance(given, dict) else {}
    named = [f"{name} {versions[name]}" for name in LIBRARIES if name in versions]
    return "; ".join([*named, *([f"device {facts['device']}"] if "device" in facts else [])])


def _absmax(site: str, records: list[dict[str, Any]]) -> float:
    return max((float(record["sites"].get(site, {}).get("absmax", 0.0)) for record in records), default=0.0)


def _field(identity: dict[str, Any], block: str, name: str) -> Any:
    inner = identity.get(block)
    return inner.get(name) if isinstance(inner, dict) else None
