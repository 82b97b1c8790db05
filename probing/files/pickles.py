"""Reads pickles of tensors, where the caller allows it, and never anything that runs code."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from probing.errors import InputError, UntrustedFile

_SAFE = "give the flag only for a file whose origin you trust; it is read by torch.load(weights_only=True)"


def read_pickle(path: Path, kind: str) -> Any:
    """Return what `torch.load(weights_only=True)` reads from a file: tensors, numbers and names.

    Args:
        path: the file.
        kind: what it holds, for messages, such as `lens`.

    Raises:
        InputError: it cannot be read so.
    """
    import torch

    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise _unreadable(path, kind, found, "check the name of the file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise _unreadable(path, kind, "no pickle, or one of more than tensors, numbers and names") from error
    except Exception as error:  # torch's own words on what else could be tried are no advice of ours
        raise _unreadable(path, kind, f"a file that torch.load cannot read ({type(error).__name__})") from error


def refused_pickle(path: Path, kind: str) -> UntrustedFile:
    """Return the error for a pickle without the flag."""
    return UntrustedFile(
        f"this {kind} is a pickle, which is not read by default",
        needed="allow_pickle_weights (--allow-pickle-weights)",
        found=path.name,
        where=str(path),
        next_step=_SAFE,
    )


def _unreadable(path: Path, kind: str, found: str, next_step: str = "fetch or make it again") -> InputError:
    return InputError(
        f"this file holds no {kind} that can be read",
        needed=f"a {kind} as it was written",
        found=found,
        where=str(path),
        next_step=next_step,
    )
