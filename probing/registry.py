"""Finds members (such as probes, controls and measures) by name: the file `probing/probes/linear.py` is the probe
`linear`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import warnings
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType

from probing.errors import unknown_name

# Kinds of members, and the package whose files they are.
FOLDERS = {
    "readers": "probing.readers",
    "tasks": "probing.tasks",
    "models": "probing.models.adapters",
    "probes": "probing.probes",
    "controls": "probing.controls",
    "measures": "probing.measures",
    "analyses": "probing.analyses",
    "executors": "probing.executors",
    "interventions": "probing.use.interventions",
    "behaviours": "probing.use.behaviours",
}
ROLES = {"": "MEMBER", "/regression": "REGRESSION_MEMBER"}
# What a kind was called in version 0.1, as an entry-point group too.
_BEFORE = {"readers": "corpora"}
_SINGULAR = {"readers": "corpus reader", "analyses": "analysis"}


def names(folder: str) -> list[str]:
    """Return the registered names in one extension folder, such as `probes`, sorted, without importing any member.

    Raises:
        UnknownName: there is no such folder.
    """
    folder = _new_name(folder)
    if folder not in FOLDERS:
        raise unknown_name("kind of member", folder, FOLDERS)
    home = Path(__file__).parent.joinpath(*FOLDERS[folder].split(".")[1:])
    own = {path.stem for path in home.glob("[a-z]*.py")}
    return sorted(own | set(_entry_points(folder)))


def get(folder: str, name: str) -> ModuleType:
    """Import the file of the member `name` in an extension folder such as `probes`, and return the module; no other
    member is imported.

    Raises:
        UnknownName: there is no such member; the message lists all and names the nearest.
    """
    folder = _new_name(folder)
    known = names(folder)
    if name not in known:
        raise unknown_name(_SINGULAR.get(folder, f"{folder.removesuffix('s')} name"), name, known)
    module = _entry_points(folder).get(name, f"{FOLDERS[folder]}.{name}")
    return importlib.import_module(module)


@cache
def name_of(kind: type) -> str | None:
    """Return the name that identifies a member's class (`kind`), whatever module it is in: `probes:mlp`, or
    `probes:mlp/regression` for its regression form; None for a class that is not registered.
    """
    folder, own = member_of(kind.__module__)
    module = sys.modules.get(kind.__module__)
    found = [role for role, form in ROLES.items() if folder and getattr(module, form, None) is kind]
    return f"{folder}:{own}{found[0]}" if found else None


def member_name(kind: type) -> str:
    """Return the name by which options select a member's class (`kind`), such as `mlp`; for a class that is not
    registered, the class's name.
    """
    found = name_of(kind)
    return found.partition(":")[2].partition("/")[0] if found else kind.__name__


def identity_of(kind: type) -> str:
    """Return a text that identifies a class (`kind`) and is the same in every process: what `name_of` returns or, for a
    class that is not registered, its module and name. (In worker processes, the module of a script is called
    `__mp_main__`; it becomes `__main__`.)
    """
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return name_of(kind) or f"{module}.{kind.__qualname__}"


def member_of(module: str) -> tuple[str, str]:
    """Return the folder and name of the member that a module defines, in this or another installed package; a pair of
    empty strings if it defines none.
    """
    home, _, name = module.rpartition(".")
    for folder, package in FOLDERS.items():
        if home == package:
            return folder, name
        found = [name for name, its_module in _entry_points(folder).items() if its_module == module]
        if found:
            return folder, found[0]
    return "", ""


def class_of(name: str, folder: str) -> type | None:
    """Return the registered class with this full name, or None if there is none among the members of this kind.

    Args:
        name: full name, as `name_of` returns it, such as `probes:mlp`.
        folder: kind of member that is expected, such as `probes`; a name of another kind is not accepted.
    """
    head, _, tail = name.partition(":")
    member, slash, role = tail.partition("/")
    if head != folder or slash + role not in ROLES or member not in names(folder):
        return None
    kind = getattr(get(folder, member), ROLES[slash + role], None)
    return kind if isinstance(kind, type) else None


def _entry_points(folder: str) -> dict[str, str]:
    """Return the members that other installed packages add under the group `probing.<folder>`."""
    places = tuple((place, _changed(place)) for place in sys.path)
    found = dict(_installed(f"probing.{folder}", places))
    old = _installed(f"probing.{_BEFORE[folder]}", places) if folder in _BEFORE else ()
    if old:
        _warn(f"the entry-point group `probing.{_BEFORE[folder]}` is called `probing.{folder}` now")
    return dict(old) | found


@lru_cache(maxsize=64)
def _installed(group: str, places: tuple[tuple[str, float], ...]) -> tuple[tuple[str, str], ...]:
    """Return name and module of the entry points of a group; installed packages are gone through, which takes some
    10 ms, only where a place they lie in has changed.
    """
    return tuple((point.name, point.module) for point in importlib.metadata.entry_points(group=group))


def _changed(place: str) -> float:
    """Return when a folder last changed; 0 of what is none."""
    try:
        return Path(place or ".").stat().st_mtime
    except OSError:
        return 0.0


def _new_name(folder: str) -> str:
    for new, old in _BEFORE.items():
        if folder == old:
            _warn(f"`{old}` are called `{new}` now")
            return new
    return folder


def _warn(what: str) -> None:
    warnings.warn(f"{what}: the old name works until version 0.3", DeprecationWarning, stacklevel=3)
