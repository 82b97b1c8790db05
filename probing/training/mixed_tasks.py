"""Gives tasks of several kinds the members that fit them, out of one list of probes, measures and analyses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from probing import registry
from probing.contracts.task import Task
from probing.errors import NotForThisTask
from probing.recipes import build_task, normalised
from probing.text.corpus import Corpus
from probing.training.build import DEFAULT_MEASURES, DEFAULT_PROBES


class Asked(Protocol):
    """The options of a job about its tasks."""

    @property
    def tasks(self) -> list[str]:
        """Recipes of all tasks."""

    @property
    def probes(self) -> list[str]:
        """Recipes of the probes; if empty, each task has its default, and so for measures."""

    @property
    def measures(self) -> list[str]:
        """Recipes of the measures."""

    @property
    def analyses(self) -> list[str]:
        """Recipes of the analyses."""


def fitting(task: str, corpus: Corpus, asked: Asked) -> dict[str, Any]:
    """Return probes, measures and analyses for `train` of one task; None: the task's own defaults.

    Of a single task everything stays as it was asked for. Of several, a probe or measure that cannot predict or score a
    target of this kind, or read such rows, gives way to the defaults, an analysis is left out; both with a warning.

    Raises:
        UnknownName: no such task or member.
    """
    chosen = {"probes": asked.probes, "measures": asked.measures, "analyses": asked.analyses}
    if len(asked.tasks) > 1 and any(chosen.values()):
        built = build_task(task, corpus)
        built.prepare(corpus)
        defaults = {
            "probes": built.probes or DEFAULT_PROBES[built.kind],
            "measures": built.measures or DEFAULT_MEASURES[built.kind],
        }
        chosen = {name: _kept(name, chosen[name], task, built, defaults.get(name, ())) for name in chosen}
    return {name: recipes if name == "analyses" else recipes or None for name, recipes in chosen.items()}


def _kept(folder: str, recipes: Sequence[str], name: str, task: Task, defaults: Sequence[str]) -> list[str]:
    unfit = [recipe for recipe in recipes if not _fits(folder, recipe, task)]
    if unfit:
        instead = f"{', '.join(defaults)} in {'its' if len(unfit) == 1 else 'their'} place" if defaults else "left out"
        warnings.warn(
            f"task {name} ({task.kind}, rows read as {task.row_form}): not for {', '.join(unfit)}; {instead}",
            NotForThisTask,
            stacklevel=4,
        )
    kept = [recipe for recipe in recipes if recipe not in unfit]
    named = {normalised(folder, recipe) for recipe in kept}
    return kept + [default for default in (defaults if unfit else ()) if default not in named]


def _fits(folder: str, recipe: str, task: Task) -> bool:
    """Return whether a member has a form for the task's kind of target and for its rows."""
    module = registry.get(folder, recipe.partition(":")[0].strip())
    forms = [form for form in (module.MEMBER, getattr(module, "REGRESSION_MEMBER", None)) if form is not None]
    if folder != "probes":
        return any(task.kind in form.kinds for form in forms)
    kind = "real" if task.kind == "real" else "classes"  # of several labels each is a problem of two classes
    return any(kind in form.kinds and task.row_form in (form.row_forms or (task.row_form,)) for form in forms)
