"""The format of this package: `dictionary.json`, and a safetensors file that it names with its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.dictionaries.dictionary import ARRAYS, Dictionary
from probing.dictionaries.formats._files import made, no_dictionary, not_supported, read_safetensors
from probing.errors import ProbingError
from probing.files.whole_files import write_atomically
from probing.states.store.format import parse_signed, signed_json

FORMAT, FORMAT_VERSION, FILE = "probing-dictionary", "1.0", "dictionary.json"
_FACTS = ("model", "site", "target", "source")


def write_dictionary(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary; see `Dictionary.save`. The weights have a name of their own, and the old ones are deleted
    only when the settings name the new ones.
    """
    from safetensors.numpy import save

    content = save({name: getattr(dictionary, name) for name in ARRAYS if getattr(dictionary, name) is not None})
    weights = f"weights.{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    facts: dict[str, Any] = {name: getattr(dictionary, name) for name in _FACTS}
    facts |= {"format": FORMAT, "format_version": FORMAT_VERSION, "weights": weights}
    facts |= {"content_id": dictionary.content_id, "declared": _plain(dictionary.declared)}
    write_atomically(folder / weights, content)
    write_atomically(folder / FILE, signed_json(facts | dictionary.settings))
    for old in folder.glob("weights.*.safetensors"):
        if old.name != weights:
            old.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; what JSON does not have becomes text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | str) else _number(value)


def _number(value: Any) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if abs(number) < float("inf") else str(number)


def read(file: Path, *, allow_pickle_weights: bool = False, norm_factor: float | None = None) -> Dictionary:
    """Read a dictionary that `write_dictionary` wrote.

    Raises:
        UnsupportedFormat: it is of another major version.
        InputError: it is damaged.
    """
    try:
        facts = parse_signed(file.read_bytes())
    except (ValueError, ProbingError) as error:
        raise no_dictionary(file, str(error).splitlines()[0][:200]) from None
    if facts.get("format") != FORMAT or str(facts.get("format_version")).partition(".")[0] != "1":
        found = f"{facts.get('format')} {facts.get('format_version')}"
        raise not_supported(file, "version", found, f"{FORMAT} {FORMAT_VERSION}")
    name = facts.get("weights")
    if not isinstance(name, str) or Path(name).name != name or not (file.parent / name).is_file():
        raise no_dictionary(file, f"weights {name!r}", needed="the file of weights beside it")
    arrays = read_safetensors(file.parent / name)
    if unknown := sorted(set(arrays) - set(ARRAYS)):
        raise not_supported(file, "array", ", ".join(unknown), ", ".join(ARRAYS))
    settings = {
        key: facts.get(key)
        for key in ("architecture", "k", "grouped", "subtract_decoder_bias", "normalization", *_FACTS)
    }
    texts = [settings[name] for name in _FACTS if settings[name] is not None]
    flags = [settings["grouped"], settings["subtract_decoder_bias"]]
    declared = facts.get("declared")
    if (
        not isinstance(declared, dict)
        or not all(isinstance(text, str) for text in texts)
        or not all(isinstance(flag, bool) for flag in flags)
    ):
        raise no_dictionary(file, "settings of other types")
    own = made(file, arrays, **settings, declared=declared)
    if own.content_id != facts.get("content_id"):
        raise no_dictionary(file.parent / name, "weights or settings of another content_id")
    return own
