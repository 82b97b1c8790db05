"""Reads dictionaries in the formats of other tools and of this package, one format per file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from probing.dictionaries._options import is_real
from probing.dictionaries.formats._files import no_dictionary
from probing.dictionaries.formats.ours import write_dictionary
from probing.errors import BadParameter, ConfigError

if TYPE_CHECKING:
    from probing.dictionaries.dictionary import Dictionary

__all__ = ["FORMATS", "format_of", "read_dictionary", "write_dictionary"]

# The names of files by which a folder is recognised; each format is a module of this name here.
FORMATS = {
    "ours": ("dictionary.json",),
    "saelens": ("sae_weights.safetensors",),
    "sparsify": ("sae.safetensors",),
    "gemma_scope": ("params.npz", "params.safetensors"),
    "dictionary_learning": ("ae.pt",),
}


def format_of(path: Path) -> tuple[str, Path]:
    """Return the name of the format of a file or folder, and the file by which it was recognised.

    Raises:
        CannotReachFile: there is nothing at this path.
        InputError: no format has such files, or more than one has.
    """
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    folder = path if path.is_dir() else path.parent
    places = {name: folder / file for name, files in FORMATS.items() for file in files if (folder / file).is_file()}
    if path.is_file():
        places = {name: place for name, place in places.items() if place == path} or (
            {} if path.suffix not in (".json",) else places
        )
    if len(places) != 1:
        raise no_dictionary(
            path,
            ", ".join(place.name for place in places.values()) or "none of them",
            needed="one of " + ", ".join(file for files in FORMATS.values() for file in files),
        )
    return next(iter(places.items()))


def read_dictionary(path: Path, *, allow_pickle_weights: bool = False, norm_factor: float | None = None) -> Dictionary:
    """Read a dictionary of any of the formats; see `Dictionary.load`."""
    if norm_factor is not None and not (is_real(norm_factor) and norm_factor > 0):
        raise BadParameter(
            "norm_factor is out of range", needed="a finite number above 0", found=repr(norm_factor), where=str(path)
        )
    name, file = format_of(path)
    module = import_module(f"probing.dictionaries.formats.{name}")
    read: Dictionary = module.read(file, allow_pickle_weights=allow_pickle_weights, norm_factor=norm_factor)
    if norm_factor is not None and "norm_factor" not in read.declared:
        raise ConfigError(
            "this dictionary takes no factor of its states",
            needed="a file of SAELens with normalize_activations expected_average_only_in",
            found=f"norm_factor {norm_factor:g} for a file of {read.source}",
            where=str(path),
        )
    return read
