"""Records what determines states (their identity, as canonical JSON with a hash), and the environment of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

__version__ = "0.1.0"  # of this package; written here alone
UNKNOWN = "unknown"
_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn", "h5py")


def canonical_json(value: Any) -> bytes:
    """Return a value as UTF-8 JSON with sorted keys, no spaces, no NaN and one final newline, so that equal values give
    equal bytes.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differing_keys(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Return the dotted paths (such as `model.revision`) at which two JSON values differ, for messages; each begins
    with `path`.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(set(ours) | set(theirs))
        pairs = ((f"{path}.{key}" if path else key, ours.get(key), theirs.get(key)) for key in keys)
        return [name for key, a, b in pairs for name in differing_keys(a, b, key)]
    return [] if ours == theirs else [path or "(whole)"]


def value_at(value: Any, key: str) -> str:
    """Return, as JSON cut to 80 characters, the value at a path `key` that `differing_keys` returned; keys may
    themselves contain dots.
    """
    if key and isinstance(value, dict):
        parts = key.split(".")
        heads = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        head = next((head for head in heads if head in value), None)
        return "null" if head is None else value_at(value[head], key[len(head) + 1 :])
    return canonical_json(None if key else value).decode().strip()[:80]


def model_called(model: Mapping[str, Any], stored: str = "") -> str:
    """Return the name of a model as results show it, such as `gpt2 [revision 607a30d783df, untrained (seed 0),
    float32]`.

    Args:
        model: the value of the key `model` in a store's identity; facts missing from it are left out of the name.
        stored: data type that states are stored in, which the name contains if they were computed in another.
    """
    twin, side, dtype, made = (model.get(name) for name in ("untrained", "side", "dtype", "checkpoint"))
    parts = [f"run {made['run']}"] if isinstance(made, Mapping) and made.get("run") else []
    parts += [f"step {made.get('step')}"] if isinstance(made, Mapping) else []
    parts += [_version(model)]
    parts += [f"untrained (seed {twin.get('seed')})"] if isinstance(twin, Mapping) else []
    parts += [f"{side} side"] if isinstance(side, str) else []
    if isinstance(dtype, str) and dtype != UNKNOWN:
        parts.append(dtype if stored in ("", dtype) else f"{dtype} stored as {stored}")
    told = ", ".join(filter(None, parts))
    return str(model.get("source")) + (f" [{told}]" if told else "")


def _version(model: Mapping[str, Any]) -> str:
    """Return the commit of a hub model; for a model in a folder or in memory the hash of its weights, for names
    repeat.
    """
    revision, weights = model.get("revision"), model.get("weights")
    if isinstance(revision, str) and revision != UNKNOWN:
        return f"revision {revision[:12]}"
    return f"weights {digest(weights)[:8]}" if isinstance(weights, Mapping) else ""


def weights_digest(model: Mapping[str, Any]) -> str:
    """Return a SHA-256 (hex) that identifies the weights of a model, also of an untrained one; "" if they are not
    known.

    Args:
        model: the value of the key `model` in a store's identity.
    """
    drawn, weights = model.get("untrained"), model.get("weights")
    if isinstance(drawn, Mapping):
        return digest(drawn)
    return digest(weights) if isinstance(weights, Mapping) else ""


def tokenizer_digest(tokenizer: Mapping[str, Any]) -> str:
    """Return a SHA-256 (hex) that is equal for two tokenizers if they make the same tokens, whatever folder they are in
    and whatever side they pad.

    Args:
        tokenizer: the value of the key `tokenizer` in a store's identity.
    """
    return digest({name: tokenizer.get(name) for name in ("files", "special_pieces")})


@cache
def _versions() -> dict[str, str]:
    """Return the versions of the installed libraries; reading them takes some 50 ms, and they stay what they are."""
    versions = {"probing": __version__}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return library versions, host, torch device (`device`), command and UTC time, which are recorded beside results
    and are never part of an identity.
    """
    return {
        "versions": dict(_versions()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "host": platform.node(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else "",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
