"""Everything that determines the states, as canonical JSON with a hash; and the environment, which is informational."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_LIBRARIES = ("probing", "torch", "transformers", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn", "h5py")


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces, no NaN and one final newline: equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differing_keys(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Dotted paths at which two JSON values differ, for messages."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(set(ours) | set(theirs))
        pairs = ((f"{path}.{key}" if path else key, ours.get(key), theirs.get(key)) for key in keys)
        return [name for key, a, b in pairs for name in differing_keys(a, b, key)]
    return [] if ours == theirs else [path or "(whole)"]


def value_at(value: Any, key: str) -> str:
    """The JSON at one of `differing_keys`, cut to 80 characters; parts of a key may have dots of their own."""
    if key and isinstance(value, dict):
        parts = key.split(".")
        heads = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        head = next((head for head in heads if head in value), None)
        return "null" if head is None else value_at(value[head], key[len(head) + 1 :])
    return canonical_json(None if key else value).decode().strip()[:80]


def environment(device: str = "cpu") -> dict[str, Any]:
    """Library versions, host, command and UTC time: recorded beside results, never part of an identity."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "host": platform.node(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else "",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
