"""Read a saved probe. A file names a registered probe; it cannot name anything else to be imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from probing import registry
from probing.contracts.probe import Probe
from probing.errors import BadParameter, UnsupportedFormat
from probing.probes._estimator import ClassifierProbe
from probing.system.machine import with_typed_errors

_MOST_BYTES = 64 * 2**20
_MOST_FEATURES = 10**7


@with_typed_errors
def load_probe(path: str | Path) -> Probe:
    """Return the probe that `Probe.save(path)` wrote; its predictions are bit-equal.

    One that `train` saved predicts the labels by name, and `about` says of which task, site, model and corpus it is.

    Args:
        path: the stem given to `save`, or either of the two files.

    Raises:
        BadParameter: a file is missing.
        UnsupportedFormat: not a saved probe, or one of a class that is not registered here.
    """
    stem = Path(path)
    if stem.suffix in (".json", ".safetensors"):
        stem = stem.with_suffix("")
    card = _card(stem.with_name(stem.name + ".json"))
    kind = _registered(card, stem)
    try:
        probe = kind(**card["parameters"])
        probe = probe.with_state({**_arrays(stem.with_name(stem.name + ".safetensors")), **_texts(card["text"])})
        probe.about = card.get("about", {})
        _try(probe)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, BadParameter):
            raise
        raise _damaged(stem, f"{type(error).__name__}: {error}") from error
    return probe


def _try(probe: Probe) -> None:
    """Predict one row, so that parts of different shapes are noticed now and not in the middle of some analysis."""
    if not isinstance(probe, ClassifierProbe) or probe.input != "states":
        return
    if not 0 < probe.n_features_in_ <= _MOST_FEATURES:
        raise ValueError(f"{probe.n_features_in_} features")
    with np.errstate(all="ignore"):
        found = probe.predict_log_proba(np.zeros((1, probe.n_features_in_), np.float32))
    if found.shape != (1, len(probe.classes_)):
        raise ValueError(f"{len(probe.classes_)} classes, and predictions of shape {found.shape}")
    if np.isnan(found).any():
        raise ValueError("predictions that are not numbers")


def _card(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise BadParameter("no saved probe", needed="two files, .json and .safetensors", found="none", where=str(file))
    if file.stat().st_size > _MOST_BYTES:
        raise _damaged(file, f"a card of {file.stat().st_size} bytes")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"not JSON: {error}") from error
    wanted = {"probe": str, "parameters": dict, "text": dict}
    known = isinstance(card, dict) and all(isinstance(card.get(name), form) for name, form in wanted.items())
    if not known or not isinstance(card.get("about", {}), dict):
        raise _damaged(file, "keys missing or of the wrong form")
    found: dict[str, Any] = card
    return found


def _registered(card: dict[str, Any], stem: Path) -> type[Probe]:
    """Return the class among registered members' own classes: names are only compared, nothing is imported by them."""
    kind = registry.class_of(_registered_name(card), "probes")
    if kind is not None and issubclass(kind, Probe):
        return kind
    raise UnsupportedFormat(
        "a saved probe of a class that is not registered here",
        needed=f"one of: {', '.join(registry.names('probes'))}",
        found=str(card["probe"])[:200],
        where=str(stem),
        next_step="install the package that adds it",
    )


def _registered_name(card: dict[str, Any]) -> str:
    """Return the name in a card; for a card from before names were registered, the name that its module and class have
    now.
    """
    if "class" not in card:
        return str(card["probe"])
    folder, name = registry.member_of(str(card["probe"]))
    titles = [f"{folder}:{name}{role}" for role in registry.ROLES]
    known = [title for title in titles if getattr(registry.class_of(title, "probes"), "__name__", "") == card["class"]]
    return known[0] if known else str(card["probe"])


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        raise BadParameter("half a saved probe", needed="the arrays beside the card", found="none", where=str(file))
    arrays: dict[str, NDArray[Any]] = load_file(file)
    return arrays


def _texts(texts: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return text arrays; labels that were objects come back as fixed-width text, equal in value."""
    arrays = {}
    for name, values in texts.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"text array {name!r} is not a list of strings")
        arrays[name] = np.array(values, dtype=np.str_)
    return arrays


def _damaged(file: Path, why: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        "not a readable saved probe", needed="files written by Probe.save", found=why, where=str(file)
    )
