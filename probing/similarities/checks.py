"""Opens and names the stores that are compared, and refuses options of wrong kinds before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probing.errors import BadParameter, CannotReachFile, ProvenanceMismatch
from probing.states.store import Store
from probing.text.corpus import Corpus

LEAST_PERMUTATIONS = 19  # of fewer the largest is no bound of 95 %


def refuse_without_corpus(
    corpus: Corpus | None, task: str | None, probe: str | None, models: Any, resample_by: str
) -> None:
    """Refuse options that need the corpus without it, and a probe without a task."""
    if probe is not None and task is None:
        raise BadParameter("probe needs a task", needed="the task of the probe", found="none", where="task")
    needing = {"task": task, "models": models, "resample_by=document": resample_by == "document" or None}
    for name in (name for name, value in needing.items() if value is not None and corpus is None):
        raise BadParameter(f"{name} needs the corpus", needed="the corpus of the stores", found="none", where=name)


def refuse_values(counts: Mapping[str, tuple[Any, int]], names: Mapping[str, tuple[Any, tuple[str, ...]]]) -> None:
    """Refuse numbers that are no whole ones or below their least value, and names that are none of those allowed."""
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadParameter(f"{name} is no whole number", needed=f"{least} or more", found=repr(value), where=name)
        if value < least:
            raise BadParameter(f"{name} is too small", needed=f"{least} or more", found=str(value), where=name)
        if name == "permutations" and 0 < value < LEAST_PERMUTATIONS:
            needed = f"{LEAST_PERMUTATIONS} or more, of which 95 % can be told from the rest; or 0 for no null"
            raise BadParameter(f"{name} is too small", needed=needed, found=str(value), where=name)
    for name, (chosen, allowed) in names.items():
        if chosen not in allowed:
            raise BadParameter(f"{name} is wrong", needed=" or ".join(allowed), found=str(chosen), where=name)


def refuse_no_sites(sites: Any) -> None:
    """Refuse patterns of sites that are no texts, or none."""
    patterns = [sites] if isinstance(sites, str) else list(sites) if isinstance(sites, Sequence) else [None]
    if not patterns or not all(isinstance(one, str) and one.strip() for one in patterns):
        needed = "one or more patterns of sites, such as resid.*"
        raise BadParameter("sites names no site", needed=needed, found=repr(sites), where="sites")


def refuse_store(folder: Path | None) -> None:
    """Refuse a folder of results that is itself a store."""
    if folder is not None and (folder / "store.json").is_file():
        raise CannotReachFile(
            "results cannot be written into a store", needed="a folder of results", found="a store", where=str(folder)
        )


def opened(store: Store | str | Path) -> Any:
    """Return a store, opened if it is a directory.

    Raises:
        BadParameter: it is neither a store nor a path.
    """
    if isinstance(store, str | Path):
        return Store.open(store)
    if not hasattr(store, "identity"):
        raise BadParameter("no store", needed="a store, or its directory", found=repr(store), where="stores")
    return store


def named(stores: Sequence[Store | str | Path]) -> dict[str, Any]:
    """Return the stores by the names of their folders, with the parent's name, or a number, where names are equal."""
    every = [opened(store) for store in stores]
    paths = [Path(store.path) for store in every]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = ["/".join(path.parts[-2:]) for path in paths]
    found: dict[str, Any] = {}
    for name, store in zip(names, every, strict=True):
        found[name if name not in found else f"{name} ({len(found) + 1})"] = store
    return found


def refuse_trained(twins: Mapping[str, Any]) -> bool:
    """Refuse a twin that is recorded as trained, and return whether it is recorded as untrained (or there is none)."""
    models = [store.identity.get("model") for store in twins.values()]
    recorded = [model for model in models if isinstance(model, Mapping)]
    for model in recorded:
        if not isinstance(model.get("untrained"), Mapping) and isinstance(model.get("weights"), Mapping):
            raise ProvenanceMismatch(
                "the store of the untrained twin was made by a trained model",
                needed="a store that was extracted with --untrained SEED",
                found=f"{model.get('source')} with its trained weights",
                where="twin",
                next_step="name trained models among the stores that are compared",
            )
    return all(isinstance(model, Mapping) and isinstance(model.get("untrained"), Mapping) for model in models)
