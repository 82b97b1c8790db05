"""Constants and checks of the store format, version 1.0 (docs/store-format.md): names, data types, plan, store.json."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, NotAStore, UnsupportedFormat
from probing.models.site import Site
from probing.provenance import canonical_json, digest

FORMAT = "probing-activations"
FORMAT_VERSION = "1.0"
MAX_SHARDS = 100_000
MAX_SHARD_BYTES = 1 << 30
MAX_JSON_BYTES = 64 << 20
ALIGNMENT = 4096
ITEM_BYTES = {"u1": 1, "u2": 2, "u4": 4, "u8": 8, "i4": 4, "float16": 2, "float32": 4, "bfloat16": 2, "float64": 8}
MEMORY_TYPES = {
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
    "u1": "u1",
    "u2": "<u2",
    "u4": "<u4",
    "u8": "<u8",
    "i4": "<i4",
}
STATE_TYPES = ("float32", "float16", "bfloat16")
ROW_COLUMNS = {
    "example": "u4",
    "piece_start": "u4",
    "piece_end": "u4",
    "char_start": "u4",
    "char_end": "u4",
    "word": "i4",
}
REPLAY_ROW_COLUMNS = {"input_id": "u4", "position_id": "i4", "mask": "u1"}
ROLES = ("states", "replay", "latents")
MAX_LATENTS = (1 << 31) - 1
OUTPUTS = ("none", "last", "mask", "all")
FLAGS = {"skipped": 1, "truncated": 2, "has_missing": 4, "windowed": 8}  # bits of `/examples/flags`
EXAMPLE_COLUMNS = {"offset": "u8", "ordinal": "u4", "text_sha256": "u1", "flags": "u1"}
REASONS = ("too_long", "truncated", "no_pieces", "nothing_selected", "not_in_source")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}", re.IGNORECASE)


@dataclass(frozen=True)
class StoreLayout:
    """Holds the settings from a store's identity that all of its shards share."""

    store_id: str
    sites: tuple[str, ...]
    dtype: str
    starts: tuple[int, ...]
    count: int
    positions: tuple[str, ...] = ()
    role: str = "states"
    outputs: str = "none"
    has_columns: bool = False
    latents: int = 0

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> StoreLayout:
        """Read and check an identity, and return the layout.

        Raises:
            BadParameter: a block is missing or malformed, or contains a float.
        """
        _refuse_floats(identity, "")
        extraction, plan = _block(identity, "extraction"), _block(identity, "plan")
        sites, dtype = extraction.get("sites"), extraction.get("dtype")
        if not isinstance(sites, list | tuple) or not sites or len(set(sites)) != len(sites):
            raise BadParameter("identity.extraction.sites is not a list of different sites", found=repr(sites))
        for name in sites:
            Site.parse(name)
        if dtype not in STATE_TYPES:
            raise BadParameter("unknown stored dtype", needed=f"one of {', '.join(STATE_TYPES)}", found=repr(dtype))
        starts, count = plan.get("starts"), plan.get("count")
        _check_plan(starts, count)
        positions = _positions(extraction)
        role, outputs = _role(identity, extraction)
        has_columns = extraction.get("columns") is not None
        spans = (tuple(starts or ()), int(count or 0))
        latents = _latents(extraction, role, sites)
        return cls(digest(identity), tuple(sites), dtype, *spans, positions, role, outputs, has_columns, latents)

    @property
    def row_columns(self) -> dict[str, str]:
        """Data type of every column of the rows, by name."""
        more = REPLAY_ROW_COLUMNS if self.role == "replay" else {}
        return ROW_COLUMNS | ({"position": "u2"} if self.positions else {}) | more

    @property
    def n_shards(self) -> int:
        """Number of planned shards."""
        return len(self.starts)

    def span(self, shard: int) -> tuple[int, int]:
        """Return the first example of a shard, and one past its last, as positions among the examples that are read."""
        ends = (*self.starts[1:], self.count)
        return self.starts[shard], ends[shard]


def _block(identity: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    block = identity.get(name)
    if not isinstance(block, dict):
        raise BadParameter(f"the identity has no block {name!r}", needed="model, tokenizer, corpus, extraction, plan")
    return block


def _positions(extraction: Mapping[str, Any]) -> tuple[str, ...]:
    names = extraction.get("position_names", [])
    has_form = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not has_form or len(names) > 1 << 16 or bool(names) != (extraction.get("rows") == "position"):
        raise BadParameter("identity.extraction.position_names is not a list of names", found=repr(names)[:200])
    return tuple(names)


def _role(identity: Mapping[str, Any], extraction: Mapping[str, Any]) -> tuple[str, str]:
    """Return the role, and which outputs are kept.

    Raises:
        BadParameter: unknown ones, or a replay store that rounds the states: they would give other outputs.
    """
    role, outputs = extraction.get("role", "states"), extraction.get("outputs", "none")
    if role not in ROLES or outputs not in OUTPUTS or (role != "replay" and outputs != "none"):
        raise BadParameter(
            "unknown role or outputs",
            needed=f"role {' or '.join(ROLES)}; outputs of a replay {', '.join(OUTPUTS)}",
            found=f"{role}, {outputs}",
        )
    computed = _block(identity, "model").get("dtype")
    if role == "replay" and extraction["dtype"] != computed:
        raise BadParameter(
            "a replay store keeps states as they were computed",
            needed=f"stored dtype {computed}",
            found=str(extraction["dtype"]),
            next_step="leave the stored dtype out, or compute in it",
        )
    return role, outputs


def _latents(extraction: Mapping[str, Any], role: str, sites: Sequence[str]) -> int:
    """Return the number of latents of a row of a store of latents; 0 for other stores."""
    latents = extraction.get("latents")
    if role != "latents":
        return 0
    if type(latents) is not int or not 0 < latents <= MAX_LATENTS or len(sites) != 1:
        raise BadParameter(
            "identity.extraction is not that of latents",
            needed=f"one site, and 1 to {MAX_LATENTS:,} latents",
            found=f"{len(sites)} sites, {latents!r}"[:100],
        )
    return latents


def _check_plan(starts: Any, count: Any) -> None:
    whole = isinstance(starts, list | tuple) and all(type(n) is int for n in [*starts, count])
    edges = [*starts, count] if whole else []
    rising = whole and all(a < b for a, b in itertools.pairwise(edges)) and edges[0] >= 0
    if not rising or len(starts) > MAX_SHARDS:
        raise BadParameter(
            "identity.plan is not a plan",
            needed=f"rising `starts` below `count`, at most {MAX_SHARDS:,} of them",
            found=repr({"starts": starts, "count": count})[:200],
        )


def _refuse_floats(value: Any, path: str) -> None:
    if isinstance(value, float):
        raise BadParameter("an identity holds no floats", found=repr(value), where=path)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_floats(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_floats(inner, path)


def check_name(path: Path) -> None:
    """Check that the name of a store directory is portable.

    Raises:
        BadParameter: the last component of the path has characters that are not portable, or is too long.
    """
    name = path.name
    if not _NAME.fullmatch(name) or ".." in name or name.endswith("."):
        raise BadParameter(
            f"{name!r} cannot name a store",
            needed="letters, digits, '.', '_' and '-', at most 100, not beginning with a sign",
            found=str(path),
        )


def shard_file(shard: int, sha256: str) -> str:
    """Return the file name of a shard, which contains its hash."""
    return f"s{shard:06d}.{sha256[:16]}.h5"


def record_file(shard: int) -> str:
    """Return the file name of a shard's commit record."""
    return f"s{shard:06d}.json"


def content_id(records: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the content id of a store: the SHA-256 of its list of (shard, SHA-256 of the shard), in shard order."""
    return digest([[shard, records[shard]["sha256"]] for shard in sorted(records)])


def signed_json(value: Mapping[str, Any]) -> bytes:
    """Return canonical JSON with a key `self_sha256`, the SHA-256 of the canonical JSON without that key.

    Raises:
        BadParameter: the text would be longer than readers accept.
    """
    data = canonical_json({**value, "self_sha256": digest(value)})
    if len(data) > MAX_JSON_BYTES:
        largest = max(value, key=lambda key: len(canonical_json(value[key])))
        raise BadParameter(
            "more than a store's JSON may have",
            needed=f"at most {MAX_JSON_BYTES:,} bytes",
            found=f"{len(data):,} bytes, most of them {largest}",
            next_step="extract fewer sites or positions, or fewer examples, at a time",
        )
    return data


def parse_signed(data: bytes) -> dict[str, Any]:
    """Parse a text that `signed_json` wrote and return its value.

    Raises:
        ValueError: the text is too long, not canonical JSON, or has changed since it was written.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{len(data)} bytes is more than a store's JSON may have")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(value, dict) or _canonical(value) != data:
        raise ValueError("it is not canonical JSON")
    body = {key: inner for key, inner in value.items() if key != "self_sha256"}
    if value.get("self_sha256") != digest(body):
        raise ValueError("its self_sha256 does not match: it was changed")
    return body


def _canonical(value: Any) -> bytes:
    try:
        return canonical_json(value)
    except (ValueError, RecursionError):
        return b""


def _nearest_store(path: Path) -> str:
    """Return the next step where there is no store at a path: a store beside it of about that name."""
    beside = [file.parent.name for file in path.absolute().parent.glob("*/store.json")]
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.4)
    return f"did you mean {str(path.with_name(near[0]))!r}?" if near else "see `probing store ls`"


def read_store_json(path: Path) -> tuple[dict[str, Any], StoreLayout]:
    """Read and check store.json, and return its content and its layout.

    Raises:
        NotAStore: the file is missing, damaged or of another kind.
        UnsupportedFormat: it has another major version.
    """
    file = path / "store.json"
    if not file.is_file():
        raise NotAStore(
            "there is no store here",
            needed="a directory with store.json",
            found=str(path),
            next_step=_nearest_store(path),
        )
    try:
        value = parse_signed(file.read_bytes())
    except ValueError as error:
        raise NotAStore("store.json is damaged", found=str(error), where=str(file)) from None
    if value.get("format") != FORMAT:
        raise NotAStore(
            "store.json is of another format", needed=FORMAT, found=repr(value.get("format")), where=str(file)
        )
    version = str(value.get("format_version"))
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise UnsupportedFormat("another major format version", needed=FORMAT_VERSION, found=version, where=str(file))
    try:
        recipe = StoreLayout.of(value["identity"])
    except (BadParameter, KeyError, TypeError, AttributeError) as error:
        raise NotAStore("store.json has no valid identity", found=str(error), where=str(file)) from None
    if recipe.store_id != value.get("store_id"):
        raise NotAStore("store.json contradicts itself: store_id is not that of its identity", where=str(file))
    return value, recipe


def widen(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return stored states converted to float32 without loss."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def are_cut(flags: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which examples were read as inputs cut at the limit of tokens, `(E,)`, from their flags `(E,)`."""
    return np.asarray(flags & (FLAGS["skipped"] | FLAGS["truncated"]) == FLAGS["truncated"])


def as_slice(ordered: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Return ordered row numbers as a slice where they follow one another, so that no row is looked up."""
    first, last = int(ordered[0]), int(ordered[-1])
    is_run = last - first == len(ordered) - 1 and bool((np.diff(ordered) == 1).all())
    return slice(first, last + 1) if is_run else ordered
