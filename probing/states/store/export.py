"""Summaries of stores, as `probing store ls` and `info` print them, and exports to other formats."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, CorruptShard, StoreError
from probing.models.site import Site
from probing.states.store.commit_record import counts, load_record, unknown_share
from probing.states.store.format import StoreLayout, are_cut, content_id, read_store_json
from probing.states.store.leases import Leases
from probing.states.store.reader import Store
from probing.states.store.verify import ShardFiles
from probing.states.store.writer import LIBRARIES
from probing.system.machine import with_typed_errors

FORMATS = {
    ".h5": "one HDF5 file",
    ".safetensors": "safetensors",
    ".parquet": "one Parquet table",
    "": "a folder of .npy",
}


@with_typed_errors
def export(path: Path | str, to: Path | str, *, compress: bool = False) -> Path:
    """Write all rows and states of a store, as float32 with the identity as metadata, in the format that the ending of
    `to` names.

    Args:
        path: a complete store.
        to: a new `.h5`, `.safetensors` or `.parquet` file, or a new folder of `.npy` files.
        compress: whether to compress an HDF5 file (shuffle and deflate).

    Raises:
        BadParameter: the ending is unknown, `to` exists already, or `compress` is set for another format than HDF5.
        IncompleteStore: shards are missing.
        CorruptShard: the store is damaged.
    """
    to = Path(to)
    writers: dict[str, Callable[[Store, Path], None]] = {
        ".h5": lambda store, place: _hdf5(store, place, compress=compress),
        ".safetensors": _safetensors,
        ".parquet": _parquet,
        "": _npy,
    }
    if to.suffix not in writers:
        raise BadParameter("unknown export format", needed=", ".join(k or "no ending" for k in FORMATS), found=to.name)
    if to.exists() or to.is_symlink():
        raise BadParameter("there is something already", found=str(to), next_step="choose another name, or remove it")
    if compress and to.suffix != ".h5":
        raise BadParameter("only HDF5 files are compressed", needed="a name ending in .h5", found=to.name)
    store = Store.open(path)
    problems = store.verify()
    if problems:
        raise CorruptShard(
            "the store does not verify",
            found="; ".join(problems[:5]),
            where=str(path),
            next_step="run `probing store verify --repair`, then `probing extract` again",
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as folder:
        made = Path(folder) / to.name
        writers[to.suffix](store, made)
        if made.is_dir():
            shutil.copytree(made, to)
        else:
            made.replace(to)
    return to


def _metadata(store: Store) -> dict[str, str]:
    return {
        "format": "probing-export",
        "store_id": store.store_id,
        "content_id": store.content_id,
        "identity": json.dumps(store.identity, sort_keys=True),
    }


def _hdf5(store: Store, to: Path, *, compress: bool) -> None:
    options = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compress else {}
    with h5py.File(to, "w") as file:
        for name, value in _metadata(store).items():  # numbers only, and no attribute may pass 64 KiB
            file[f"metadata/{name}"] = np.frombuffer(value.encode(), np.uint8)
        for name in store.row_columns:
            file.create_dataset(f"rows/{name}", data=getattr(store.rows, name), **options)
        for site in _dense_sites(store):
            file.create_dataset(f"sites/{site}", data=store.read(site), **options)
        for name, array in _latents(store).items():
            file.create_dataset(f"latents/{name}", data=array, **options)
        for name, array in _outputs(store).items():
            file.create_dataset(f"outputs/{name}", data=array, **options)


def _npy(store: Store, to: Path) -> None:
    to.mkdir()
    (to / "metadata.json").write_text(json.dumps(_metadata(store), indent=1) + "\n", encoding="utf-8")
    for name in store.row_columns:
        np.save(to / f"rows.{name}.npy", getattr(store.rows, name), allow_pickle=False)
    for site in _dense_sites(store):
        np.save(to / f"{site}.npy", store.read(site), allow_pickle=False)
    for name, array in _latents(store).items():
        np.save(to / f"latents.{name}.npy", array, allow_pickle=False)
    for name, array in _outputs(store).items():
        np.save(to / f"outputs.{name}.npy", array, allow_pickle=False)


def _safetensors(store: Store, to: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {f"rows.{name}": getattr(store.rows, name) for name in store.row_columns}
    arrays |= {f"outputs.{name}": array for name, array in _outputs(store).items()}
    arrays |= {f"latents.{name}": array for name, array in _latents(store).items()}
    save_file(arrays | {site: store.read(site) for site in _dense_sites(store)}, to, metadata=_metadata(store))


def _parquet(store: Store, to: Path) -> None:
    import pyarrow as pa  # not above: an extraction prints a summary by this file, and writes no Parquet
    import pyarrow.parquet as pq

    columns = {name: pa.array(getattr(store.rows, name)) for name in store.row_columns}
    for site in _dense_sites(store):
        states = store.read(site)
        columns[site] = pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), max(1, states.shape[1]))
    columns |= _output_columns(_outputs(store), store.n_rows)
    if latents := _latents(store):
        ends = pa.array(latents["indptr"].astype(np.int64))
        for name in ("indices", "values"):
            columns[f"latent_{name}"] = pa.LargeListArray.from_arrays(ends, pa.array(latents[name]))
    pq.write_table(pa.table(columns).replace_schema_metadata(_metadata(store)), to)


def _dense_sites(store: Store) -> tuple[str, ...]:
    """Return the sites whose states are written in full: those of a store of latents are written as sparse rows."""
    return () if store.role == "latents" else tuple(store.sites)


def _latents(store: Store) -> dict[str, NDArray[Any]]:
    """Return the sparse rows of a store of latents (`indptr`, `indices`, `values`); of others nothing."""
    if store.role != "latents":
        return {}
    rows = store.latents()
    return {"indptr": rows.indptr, "indices": rows.indices, "values": rows.data}


def _outputs(store: Store) -> dict[str, NDArray[Any]]:
    """Return the outputs of a replay store: `row` of the whole store, `logits`, `logsumexp` and `column`; of others
    nothing.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    for shard in store.shards:
        for name in store.output_names:
            array = store.dataset(shard, f"/outputs/{name}")
            parts.setdefault(name, []).append(array + store.first_row(shard) if name == "row" else array)
    return {name: found[0] if name == "column" else np.concatenate(found) for name, found in parts.items()}


def _output_columns(outputs: dict[str, NDArray[Any]], n_rows: int) -> dict[str, Any]:
    """Return the outputs as columns beside the rows: null where none were kept."""
    if not outputs:
        return {}
    import pyarrow as pa

    is_kept = np.zeros(n_rows, dtype=bool)
    is_kept[outputs["row"]] = True
    ends = np.concatenate([[0], np.cumsum(is_kept)])
    place = np.maximum(ends[1:] - 1, 0)
    sums = outputs["logsumexp"][place] if len(outputs["row"]) else np.zeros(n_rows, np.float32)
    offsets = pa.array((ends * outputs["logits"].shape[1]).astype(np.int64))
    logits = pa.LargeListArray.from_arrays(offsets, pa.array(outputs["logits"].reshape(-1)), mask=pa.array(~is_kept))
    return {"output_logsumexp": pa.array(sums, mask=~is_kept), "output_logits": logits}


def store_info(path: Path | str) -> dict[str, Any]:
    """Return a summary of a store: model, corpus, sites, progress, size, words and examples left out by reason, the
    largest absolute value at each site, and the missing shards with their examples and the process that computes each.

    Raises:
        NotAStore: the directory has no valid store.json.
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
    info |= {"cut_inputs": _cut_inputs(path, recipe, records)}
    windowed = sum(len(record.get("windowed", ())) for record in records)
    info |= {"read_in_windows": windowed} if windowed else {}
    missing = set(range(recipe.n_shards)) - {record["shard"] for record in records}
    info |= {"missing": _missing_units(path, recipe, missing)} if missing else {}
    imported = _field(header, "environment", "imported")
    info |= {"imported": imported} if imported else {}
    return info | ({"damaged_shards": damaged} if damaged else {})


def _cut_inputs(path: Path, recipe: StoreLayout, records: Sequence[Mapping[str, Any]]) -> int:
    """Return how many inputs were cut at the limit of tokens, from the flags of the examples of finished shards."""
    files = ShardFiles(path, recipe, {record["shard"]: record for record in records}, "off")
    return sum(int(are_cut(files.mapped(record["shard"], "/examples/flags")).sum()) for record in records)


def _missing_units(path: Path, recipe: StoreLayout, shards: set[int]) -> list[dict[str, Any]]:
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
    """Return the `store_info` of the store at `root`, or of every store up to two directories below it, sorted by path.

    The entry of a store that cannot be read has only `path` and `problem`.
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
