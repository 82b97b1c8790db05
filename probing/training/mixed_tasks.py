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
    """The options of a job that concern its tasks."""

    @property
    def tasks(self) -> list[str]:
        """Recipes of all tasks."""

    @property
    def probes(self) -> list[str]:
        """Recipes of the probes; if empty, each task has its defaults."""

    @property
    def measures(self) -> list[str]:
        """Recipes of the measures; if empty, each task has its defaults."""

    @property
    def analyses(self) -> list[str]:
        """Recipes of the analyses."""


def fitting(task: str, corpus: Corpus, asked: Asked) -> dict[str, Any]:
    """Return the probes, measures and analyses that `train` is given for one task; None stands for the task's defaults.

    For a single task they are what was asked for. If there are several tasks, probes or measures that cannot be used
    for this task's kind of target or rows are replaced by the defaults, and analyses are left out; both with a warning.

    Raises:
        UnknownName: there is no such task or member.
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
