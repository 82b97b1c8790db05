"""New names of the options (Python keywords, keys of study files and flags) and of the modules of version 0.1. The old
names work until version 0.3, with a warning that gives the new name.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
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


_MOVED = {
    "alignment": "text.alignment",
    "analysing": "contracts.analysis",
    "analysis": "results.analysis",
    "batching": "models.batching",
    "behaving": "contracts.behaviour",
    "behaviours": "use.behaviours",
    "chat": "text.chat",
    "chat_process": "text.chat",
    "chat_rendering": "text.chat_rendering",
    "completing": "executors._units",
    "corpora": "readers",
    "corpus": "text.corpus",
    "criterion": "verdicts.decodability",
    "cross_jobs": "jobs.cross",
    "deciding": "verdicts.verdict",
    "design": "labels",
    "editing": "contracts.intervention",
    "ending": "system.ending",
    "evidence": "use.directions",
    "extraction": "states.extraction",
    "fact_shapes": "files.fact_shapes",
    "failures": "results.analysis",
    "foreign": "states.importing.foreign",
    "grouping": "text.example",
    "heads": "text.corpus",
    "importing": "states.importing",
    "instrument": "contracts.edited_model",
    "instruments": "use.edited_models",
    "interning": "text.example",
    "intervening": "use",
    "intervening.ablating": "use.patching.ablating",
    "intervening.cells": "use.row_weights",
    "intervening.on_states": "use.state_checks",
    "intervening.prompt_pairs": "use.patching.prompt_pairs",
    "intervening.running": "use.measure",
    "intervening.runs": "use.run",
    "intervening.tally": "use.effect_sums",
    "interventions": "use.interventions",
    "job_commands": "cli.job_commands",
    "judging": "verdicts.judging",
    "language_model": "models.language_model",
    "machine": "system.machine",
    "mixed_tasks": "training.build",
    "models.cpu_speed.lanes": "models.batching",
    "models.huggingface": "models.adapters.huggingface",
    "models.module": "models.adapters.module",
    "multiplicity": "statistics.multiplicity",
    "once_only": "cli.once_only",
    "packing": "models.cpu_speed",
    "parents": "system.stopping",
    "patch_jobs": "jobs.patch",
    "patching_result": "results.patching",
    "plantbench_jobs": "jobs.plantbench",
    "positions": "text.positions",
    "predicting": "measures._rows",
    "progress": "system.screen",
    "records": "results.probe",
    "resampling": "statistics.clusters",
    "screen": "system.screen",
    "showing": "cli.output",
    "site": "models.site",
    "sources": "text.sources",
    "specs": "recipes",
    "state_controls": "contracts.control",
    "stopping": "system.stopping",
    "store": "states.store",
    "store.row_blocks": "contracts.probe",
    "store_commands": "cli.store_commands",
    "strict_json": "files.strict_json",
    "strict_yaml": "files.strict_yaml",
    "study": "jobs.study",
    "supervising": "system.supervising",
    "tempering": "measures._rows",
    "text_forms": "text.example",
    "training.crossing": "results.transfer",
    "training.members": "training.build",
    "use.cells": "use.row_weights",
    "use.on_states": "use.state_checks",
    "use.running": "use.measure",
    "use.runs": "use.run",
    "use.tally": "use.effect_sums",
    "use_jobs": "jobs.use",
    "use_result": "results.use",
    "use_run": "verdicts.verdict",
    "verdict": "verdicts.verdict",
    "whole_files": "files.whole_files",
    "work": "contracts.executor",
}


class _OldNames(MetaPathFinder, Loader):
    """Finds a module by its old name and gives the module that has the new name, not a copy of it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if new_name(name) else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        new = new_name(name)
        warnings.warn(f"{name} is now {new}: the old name works until version 0.3", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(new)


def new_name(name: str) -> str:
    """Return the new name of a module of version 0.1, or "" if its name has not changed."""
    head, _, rest = name.partition(".")
    parts = rest.split(".")
    for end in range(len(parts), 0, -1):
        if head == "probing" and (new := _MOVED.get(".".join(parts[:end]))):
            return ".".join([head, new, *parts[end:]])
    return ""


def find_old_names() -> None:
    """Install an import hook that finds modules by their old names; it comes before the search in folders."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldNames())
