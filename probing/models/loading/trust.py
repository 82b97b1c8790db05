"""Refuses what a model from elsewhere could make this process do: run Python code of its own, or load pickles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from probing.errors import RemoteCodeRefused, UnsupportedModel
from probing.files.strict_json import strict_json

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_MOST_BYTES = 64 << 20


def refuse_remote_code(name: str) -> None:
    """Refuse a folder whose model only its own Python code can build. Code beside a known model is ignored.

    Raises:
        RemoteCodeRefused: with the classes that would have been imported.
    """
    file = Path(name).expanduser() / "config.json"
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        return
    try:
        config = strict_json(file.read_bytes())
    except ValueError as error:
        raise UnsupportedModel("config.json is not sound JSON", found=str(error)[:200], where=name) from None
    own = config.get("auto_map") if isinstance(config, dict) else None
    if own and config.get("model_type") not in CONFIG_MAPPING:
        listed = ", ".join(str(value) for value in own.values()) if isinstance(own, dict) else str(own)
        raise remote_code(name, listed)


def remote_code(name: str, found: str) -> RemoteCodeRefused:
    """Return the error for a model that needs its own code."""
    return RemoteCodeRefused(
        f"model {name!r} needs Python code of its own",
        needed="a model that transformers itself can build",
        found=found[:300],
        where=name,
        next_step="nothing was imported; read and run that code yourself, and import the states: probing store import",
    )


def load_weights(load: Callable[..., Any], name: str, *, allow_pickle: bool) -> Any:
    """Return what `load(use_safetensors=…)` gives, from a pickle only if that is allowed and there is nothing else.

    Raises:
        UnsupportedModel: a folder whose only weights are pickles.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        if pickles and not allow_pickle:
            raise UnsupportedModel(
                "the weights are a pickle, which can run code when it is loaded",
                needed="*.safetensors",
                found=", ".join(pickles[:3]),
                where=name,
                next_step="convert them, or add --allow-pickle-weights if you trust who made them",
            )
        return _unpickled(load, name) if pickles else load(use_safetensors=True)
    try:
        return load(use_safetensors=True)
    except OSError:
        if folder.is_dir() or not allow_pickle:
            raise
        return _unpickled(load, name)


def _unpickled(load: Callable[..., Any], name: str) -> Any:
    """Load weights from a pickle, by a reader that builds tensors and nothing else."""
    try:
        return load(use_safetensors=False)
    except Exception as error:  # a hostile pickle may raise anything
        raise UnsupportedModel(
            "the pickled weights cannot be loaded",
            needed="tensors and nothing else",
            found=f"{type(error).__name__}: {error}".splitlines()[0][:300],
            where=name,
            next_step="ask who made them for *.safetensors",
        ) from error
