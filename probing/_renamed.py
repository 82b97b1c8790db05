"""New names of the options of version 0.1: Python keywords, keys of study files and flags. The old names work until
version 0.3, with a warning that gives the new name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from probing.errors import BadParameter, warn_of_old_name
from probing.system.machine import typed_errors

P = ParamSpec("P")
R = TypeVar("R")

RENAMED = {
    "cluster": "resample_by",
    "directions": "save_directions",
    "exact_only": "no_attribution",
    "into": "run_prompt",
    "memory": "max_memory_mib",
    "num_workers": "array_size",
    "twins": "minimal_pairs",
    "worker_index": "array_index",
}
COMMAND_LINE = "command line"  # where flags are read


def flag_of(name: str, field: Any = None) -> str:
    """Return the command-line flag of an option, such as `--probe` for `probes`; `field` may define a flag that differs
    from its name.
    """
    extra = getattr(field, "json_schema_extra", None) or {}
    return "--" + (extra.get("flag") or name).replace("_", "-")


def old_names(known: Container[str]) -> dict[str, str]:
    """Return a mapping of old names of options to new ones, for those whose new name is in `known` and whose old name
    is not.
    """
    return {old: new for old, new in RENAMED.items() if new in known and old not in known}


def by_new_names(
    given: Mapping[str, Any], known: Container[str], *, written: Callable[[str], str] = "`{}`".format
) -> dict[str, Any]:
    """Return the given options under their new names, and warn of each old name.

    Args:
        given: values by the names that the caller used.
        known: the current names.
        written: formats a name for messages, as the caller would write it.

    Raises:
        BadParameter: an option was given under both names.
    """
    renamed = {old: new for old, new in old_names(known).items() if old in given}
    for old, new in renamed.items():
        if new in given:
            raise BadParameter(
                f"{written(old)} and {written(new)} are two names of one option",
                needed=written(new),
                found="both",
                next_step=f"leave {written(old)} out",
            )
        warn_of_old_name(f"{written(old)} is now {written(new)}")
    return {renamed.get(name, name): value for name, value in given.items()}


def takes_old_names(function: Callable[P, R]) -> Callable[P, R]:
    """Return a wrapper of a function that takes keywords by their old names too, and raises errors of the operating
    system as errors of this package. (A single wrapper does both, so that tracebacks have one frame less.)
    """
    known = inspect.signature(function).parameters

    @wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> R:
        with typed_errors():
            return function(*arguments, **by_new_names(options, known))

    return called
