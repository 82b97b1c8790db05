"""Commit records of shards: their content, counts of words without a row, and checks that refuse unsafe records. A
*piece* is a token.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, CorruptShard, IncompleteStore
from probing.states.store.format import (
    ALIGNMENT,
    EXAMPLE_COLUMNS,
    FORMAT,
    FORMAT_VERSION,
    ITEM_BYTES,
    MAX_SHARD_BYTES,
    MAX_SHARDS,
    REASONS,
    StoreLayout,
    parse_signed,
    record_file,
    shard_file,
)
from probing.text.corpus import Corpus, Example

if TYPE_CHECKING:
    from probing.states.store.verify import ShardFiles


MISSING = "/missing/words"
LISTED = 1000  # the most that a record lists

Missing = Sequence[tuple[int, int, str]]


def is_listed(missing: Missing) -> bool:
    """Return whether the words without a row are few enough to be listed in the commit record (at most `LISTED`)."""
    return len(missing) <= LISTED


def as_array(missing: Missing) -> NDArray[np.uint32]:
    """Return words without a row (example, word, reason) as a dataset (n, 3) u4, in which a reason is its number in
    `REASONS`.
    """
    number = {reason: k for k, reason in enumerate(REASONS)}
    flat = (value for example, word, reason in missing for value in (example, word, number[reason]))
    return np.fromiter(flat, np.uint32, 3 * len(missing)).reshape(-1, 3)


def as_words(array: NDArray[Any]) -> list[tuple[int, int, str]]:
    """Return the (example, word, reason) triples that `as_array` encoded; a reason number that this version does not
    know becomes `unknown`.
    """
    names = dict(enumerate(REASONS))
    return [(example, word, names.get(reason, "unknown")) for example, word, reason in array.tolist()]


def entries(missing: Missing) -> dict[str, Any]:
    """Return the entries of a commit record for words without a row: the list of words, or if there are too many, their
    number by reason.
    """
    if is_listed(missing):
        return {"missing_words": [[int(example), int(word), reason] for example, word, reason in missing]}
    return {"missing_words": [], "missing_counts": dict(Counter(reason for *_, reason in missing))}


def words_of(records: Mapping[int, Mapping[str, Any]], files: ShardFiles) -> list[tuple[int, int, str]]:
    """Return the words without a row, of all shards.

    Raises:
        CorruptShard: the bytes of a shard differ from its commit record.
    """
    found: list[tuple[int, int, str]] = []
    for shard, record in records.items():
        found += [(example, word, reason) for example, word, reason in record["missing_words"]]
        found += as_words(files.mapped(shard, MISSING)) if MISSING in record["datasets"] else []
    return found


def counts(record: Mapping[str, Any]) -> Counter[str]:
    """Return the number of words without a row, by reason, from a checked record."""
    return Counter(record.get("missing_counts") or (entry[-1] for entry in record["missing_words"]))


# Data type and shape by path; a size of None: any; of a letter: any, but the same wherever the letter occurs.
Expected = dict[str, tuple[str, tuple[int | str | None, ...]]]


def expected_datasets(recipe: StoreLayout, n_rows: int, n_examples: int) -> Expected:
    """Return data type and shape of every dataset of a shard."""
    rows = {f"/rows/{name}": (dtype, (n_rows,)) for name, dtype in recipe.row_columns.items()}
    shapes = {"offset": (n_examples + 1,), "text_sha256": (n_examples, 32)}
    examples = {
        f"/examples/{name}": (dtype, shapes.get(name, (n_examples,))) for name, dtype in EXAMPLE_COLUMNS.items()
    }
    if recipe.role == "latents":
        return {**rows, **examples, **_latent_datasets(recipe, n_rows)}
    sites = {f"/sites/{name}": (recipe.dtype, (n_rows, None)) for name in recipe.sites}
    return {**rows, **examples, **sites, **_replay_datasets(recipe, n_examples)}


def _latent_datasets(recipe: StoreLayout, n_rows: int) -> Expected:
    """Return the datasets of Z latents of all rows: row r has those from indptr[r] to indptr[r + 1]."""
    index = "u2" if recipe.latents <= 1 << 16 else "u4"
    return {
        "/latents/indptr": ("u8", (n_rows + 1,)),
        "/latents/indices": (index, ("Z",)),
        "/latents/values": (recipe.dtype, ("Z",)),
    }


# What a shard may have besides: words without a row, where they are too many for its record.
OPTIONAL: Expected = {MISSING: ("u4", (None, 3))}


def _replay_datasets(recipe: StoreLayout, n_examples: int) -> Expected:
    """Return the datasets of M rows whose outputs are kept, C columns of them."""
    found: Expected = {"/examples/batch": ("u4", (n_examples, 2))} if recipe.role == "replay" else {}
    if recipe.outputs != "none":
        found |= {"/outputs/row": ("u4", ("M",)), "/outputs/logits": ("float32", ("M", "C"))}
        found |= {"/outputs/logsumexp": ("float32", ("M",))}
        found |= {"/outputs/column": ("u4", ("C",))} if recipe.has_columns else {}
    return found


def shard_attributes(
    recipe: StoreLayout, shard: int, n_rows: int, facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Return the attributes of a shard file by path: those of the root, and of each site."""
    first, end = recipe.span(shard)
    root = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "store_id": recipe.store_id,
        "shard": shard,
        "example_start": first,
        "n_examples": end - first,
        "n_rows": n_rows,
    }
    places = {name: "/latents/values" if recipe.role == "latents" else f"/sites/{name}" for name in recipe.sites}
    return {"/": root, **{place: facts.get(name, {}) for name, place in places.items()}}


def check_record(record: Mapping[str, Any], recipe: StoreLayout, shard: int) -> None:
    """Check that a commit record can be read safely.

    Raises:
        ValueError: the record is malformed or does not fit the store; the message says why.
    """
    for key, wanted in {"store_id": recipe.store_id, "shard": shard, "examples": list(recipe.span(shard))}.items():
        if record.get(key) != wanted:
            raise ValueError(f"its {key} is {record.get(key)!r}, not {wanted!r}")
    sha256 = record.get("sha256")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError("it has no sha256")
    if record.get("file") != shard_file(shard, sha256):
        raise ValueError(f"its file is {record.get('file')!r}, not the name of its content")
    n_rows, n_bytes = record.get("n_rows"), record.get("bytes")
    if not _natural(n_rows) or not _natural(n_bytes) or n_bytes > MAX_SHARD_BYTES:
        raise ValueError("its n_rows or bytes is out of range")
    first, end = recipe.span(shard)
    described = record.get("datasets")
    more = {path: OPTIONAL[path] for path in OPTIONAL if isinstance(described, dict) and path in described}
    check_datasets(described, expected_datasets(recipe, n_rows, end - first) | more, n_bytes)
    _check_reports(record, recipe)


def _check_reports(record: Mapping[str, Any], recipe: StoreLayout) -> None:
    optional = {"windowed": (int, int), "inputs": (int, int, str)}
    reports = {"skipped": (int, str), "missing_words": (int, int, str)} | optional
    for key, kinds in reports.items():
        entries = record.get(key, [] if key in optional else None)
        if not isinstance(entries, list) or any(
            not isinstance(entry, list) or tuple(map(type, entry)) != kinds for entry in entries
        ):
            raise ValueError(f"its {key} is malformed")
    missing = record.get("missing_counts", {})
    if not isinstance(missing, dict) or not all(_natural(count) for count in missing.values()):
        raise ValueError("its missing_counts is malformed")
    if not _natural(record.get("pieces", 0)):
        raise ValueError("its number of pieces is malformed")
    facts = record.get("sites")
    if not isinstance(facts, dict) or not all(isinstance(facts.get(name), dict) for name in recipe.sites):
        raise ValueError("it does not describe its sites")
    if any(type(facts[name].get("absmax")) not in (int, float) for name in recipe.sites):
        raise ValueError("it does not say how large its states are")


def _natural(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def fits(wanted: Sequence[int | str | None], found: Sequence[int], sizes: dict[str, int]) -> bool:
    """Return whether a shape is as expected: None allows any size, and a letter the same size everywhere (`sizes`
    stores it at its first occurrence).
    """
    if len(wanted) != len(found):
        return False
    bound = [sizes.setdefault(w, f) if isinstance(w, str) else w for w, f in zip(wanted, found, strict=True)]
    return all(w in (None, f) for w, f in zip(bound, found, strict=True))


def check_datasets(datasets: Any, expected: Expected, n_bytes: int) -> None:
    """Check that the datasets described lie inside a file, do not overlap, and have the expected shapes and types.

    Raises:
        ValueError: a condition does not hold; the message says which.
    """
    sizes: dict[str, int] = {}
    if not isinstance(datasets, dict) or not expected.keys() <= datasets.keys():
        raise ValueError("a dataset is missing")
    used: list[tuple[int, int, str]] = []
    for path, (dtype, shape) in expected.items():
        entry = datasets[path]
        if not isinstance(entry, dict) or entry.get("dtype") != dtype:
            raise ValueError(f"{path} is not {dtype}")
        found = entry.get("shape")
        if not isinstance(found, list) or not all(map(_natural, found)):
            raise ValueError(f"{path} has no valid shape")
        if not fits(shape, found, sizes):
            raise ValueError(f"{path} has shape {found}, not {list(shape)}")
        offset, size = entry.get("offset"), entry.get("nbytes")
        if not (_natural(offset) and _natural(size)) or offset + size > n_bytes:
            raise ValueError(f"{path} lies outside the file")
        if size != math.prod(found) * ITEM_BYTES[dtype]:
            raise ValueError(f"{path} has {size} bytes, which is not its shape")
        if size >= ALIGNMENT and offset % ALIGNMENT:
            raise ValueError(f"{path} is not aligned")
        if not isinstance(entry.get("xxh3_128"), str):
            raise ValueError(f"{path} has no xxh3_128")
        used += [(offset, offset + size, path)] if size else []
    used.sort()
    for (_, end, path), (start, _, after) in itertools.pairwise(used):
        if start < end:
            raise ValueError(f"{path} and {after} overlap")


def unknown_share(records: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the share of content pieces that are the tokenizer's unknown piece; None if a record lacks the counts."""
    listed = list(records)
    pieces = sum(record.get("pieces", 0) for record in listed)
    if not pieces or any("pieces" not in record for record in listed):
        return None
    return float(sum(count for record in listed for _, count, _ in record.get("inputs", ())) / pieces)


def load_record(path: Path, recipe: StoreLayout, shard: int) -> dict[str, Any] | None:
    """Read and check the commit record of a shard and the size of its file, and return the record; None if none was
    published.

    Raises:
        CorruptShard: the record is damaged, or its file is missing or has another size.
    """
    file = path / "shards" / record_file(shard)
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        record = parse_signed(data)
        check_record(record, recipe, shard)
        size = (path / "shards" / record["file"]).stat().st_size
    except (ValueError, FileNotFoundError) as error:
        raise corrupt(path, shard, str(error), role=recipe.role) from None
    if size != record["bytes"]:
        raise corrupt(path, shard, f"its file has {size} bytes, not {record['bytes']}", role=recipe.role)
    return record


def corrupt(path: Path, shard: int, found: str, dataset: str = "", *, role: str = "states") -> CorruptShard:
    """Return the error for a shard that differs from its commit record; `role` is what its store holds."""
    command = "probing dictionary encode" if role == "latents" else "probing extract"
    record = path / "shards" / record_file(shard)
    return CorruptShard(
        f"shard {shard} is damaged" + (f" in dataset {dataset}" if dataset else ""),
        needed="bytes equal to those committed",
        found=found,
        where=str(record),
        next_step=f"remove {record.name} and run `{command}` again: only this shard is computed anew",
    )


def incomplete(path: Path, done: int, planned: int, *, role: str = "states") -> IncompleteStore:
    """Return the error for a store that is not finished; `role` is what it holds."""
    command = "probing dictionary encode" if role == "latents" else "probing extract"
    return IncompleteStore(
        "the store is not finished",
        needed=f"{planned} shards",
        found=f"{done} shards",
        where=str(path),
        next_step=f"run the same `{command}` again: it goes on where it was",
    )


EXAMPLES_PER_SHARD = 8192


def shard_starts(
    corpus: Corpus, scope: str, row_bytes: int, shard_bytes: int, example_bytes: int = 0
) -> tuple[int, ...]:
    """Return the number of the first example of each shard, computed from the corpus and the options alone.

    Rows are estimated without a tokenizer (one per word, one per sentence, one piece per four characters), so that a
    resumed run need not tokenise the examples that are done.

    Args:
        corpus: the corpus.
        scope: kind of rows: `piece`, `word`, `sentence` or `position`.
        row_bytes: bytes of one row (of all positions of an example) over all sites.
        shard_bytes: approximate size of a shard.
        example_bytes: bytes that each example takes besides its rows.

    Raises:
        BadParameter: there would be more shards than the format allows.
    """
    budget = max(shard_bytes, row_bytes)
    starts, filled = [0], 0
    for ordinal, example in enumerate(corpus.examples):
        estimate = row_estimate(example, scope) * row_bytes + example_bytes
        is_full = filled + estimate > budget or ordinal - starts[-1] >= EXAMPLES_PER_SHARD
        if is_full and ordinal > starts[-1]:
            starts.append(ordinal)
            filled = 0
        filled += estimate
    if len(starts) > MAX_SHARDS:
        raise BadParameter(
            "too many shards",
            needed=f"at most {MAX_SHARDS}",
            found=str(len(starts)),
            next_step="raise shard_bytes, or extract fewer sites at a time",
        )
    return tuple(starts)


def row_estimate(example: Example, scope: str) -> int:
    """Return an estimate of the number of rows of an example."""
    return {"word": len(example.words), "sentence": 1, "position": 1}.get(scope, len(example.text) // 4 + 1)
