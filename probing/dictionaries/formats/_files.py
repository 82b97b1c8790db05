"""Reads files of weights and settings that are not trusted, and says what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.dictionaries.dictionary import Dictionary
from probing.errors import BadParameter, InputError, UnknownSite, UnsupportedFormat
from probing.files.strict_json import strict_json

Floats = NDArray[np.float32]
_MOST_JSON = 8 << 20


def no_dictionary(path: Path, found: str, *, needed: str = "a dictionary as it was written") -> InputError:
    """Return the error for a file that holds no dictionary that can be read."""
    return InputError(
        "this file holds no dictionary that can be read",
        needed=needed,
        found=found,
        where=str(path),
        next_step="fetch or make it again",
    )


def not_supported(path: Path, what: str, found: object, needed: str) -> UnsupportedFormat:
    """Return the error for a setting that is not known here: what it does to latents cannot be guessed."""
    return UnsupportedFormat(
        f"this dictionary has an unknown {what}",
        needed=needed,
        found=repr(found)[:200],
        where=str(path),
        next_step="convert it by its own library, or use that to encode",
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of settings.

    Raises:
        InputError: it is none.
    """
    if not path.is_file():
        raise no_dictionary(path, "no such file", needed=f"{path.name} beside the weights")
    if path.stat().st_size > _MOST_JSON:
        raise no_dictionary(path, f"{path.stat().st_size:,} bytes", needed="settings of at most 8 MiB")
    try:
        value = strict_json(path.read_bytes(), finite=False)
    except ValueError as error:
        raise no_dictionary(path, str(error)[:200], needed="JSON") from None
    if not isinstance(value, dict):
        raise no_dictionary(path, f"JSON {type(value).__name__}", needed="a JSON object")
    return value


def read_safetensors(path: Path) -> dict[str, Floats]:
    """Return the arrays of real floating-point numbers in a safetensors file, in float32.

    Raises:
        InputError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # NumPy has no bfloat16
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {name: tensor.float().numpy() for name, tensor in tensors.items() if not tensor.is_complex()}
    except OSError:
        raise
    except (SafetensorError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
        raise no_dictionary(path, f"{type(error).__name__}: {error}"[:200], needed="a safetensors file") from None


def made(path: Path, arrays: Mapping[str, Any], **settings: Any) -> Dictionary:
    """Return the dictionary of a file.

    Raises:
        InputError: arrays are missing or do not fit one another.
    """
    missing = [name for name in ("encoder", "encoder_bias", "decoder", "decoder_bias") if arrays.get(name) is None]
    if missing:
        raise no_dictionary(path, f"no {', '.join(missing)}", needed="encoder, decoder and their biases")
    try:
        return Dictionary(**arrays, **settings)
    except (BadParameter, UnknownSite) as error:
        raise no_dictionary(path, f"{error.message}: {error.found}", needed=error.needed) from None


def text_in(settings: Mapping[str, Any], name: str) -> str | None:
    """Return a setting that is a text; None if it is anything else."""
    value = settings.get(name)
    return value if isinstance(value, str) and value else None


def whole_number(path: Path, name: str, value: object) -> int:
    """Return a setting that is a positive whole number, such as k.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise no_dictionary(path, f"{name} {value!r}"[:100], needed=f"{name}: a positive whole number")
    return value


def check_sizes(path: Path, settings: Mapping[str, Any], sizes: Mapping[str, int | None]) -> None:
    """Compare sizes in the settings with those of the weights; a size of None is not known.

    Raises:
        InputError: a setting is no whole number, or another one.
    """
    for name, size in sizes.items():
        if name in settings and size is not None and whole_number(path, name, settings[name]) != size:
            raise no_dictionary(path, f"{name} {settings[name]}", needed=f"{name} {size}, the size of the weights")


def flag(path: Path, settings: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a setting that is true or false.

    Raises:
        InputError: it is something else.
    """
    value = settings.get(name, default)
    if not isinstance(value, bool):
        raise no_dictionary(path, f"{name} {value!r}"[:100], needed=f"{name}: true or false")
    return value


def size_of(matrix: Floats | None, axis: int) -> int | None:
    """Return the size of a matrix along an axis; None if it is no matrix."""
    return int(matrix.shape[axis]) if matrix is not None and matrix.ndim == 2 else None


def transposed(matrix: Floats | None) -> Floats | None:
    """Return a matrix with rows and columns exchanged; None for None."""
    return None if matrix is None else np.ascontiguousarray(matrix.T)
