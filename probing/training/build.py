"""Builds the members that a run names: probes, measures, analyses, controls, baselines; and chooses those that fit each
of several tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from probing import registry
from probing.contracts.analysis import Analysis
from probing.contracts.control import Control, Probed, StateControl, StateSource
from probing.contracts.measure import Measure, check_margin
from probing.contracts.probe import Probe
from probing.contracts.task import Task
from probing.errors import BadParameter, DoubtfulData, NotForThisTask
from probing.labels import Kind, Labels
from probing.probes._each_label import EachLabelProbe
from probing.probes.sklearn import SklearnProbe, SklearnRegressorProbe
from probing.recipes import build, build_task, full_recipe, normalised, spec_of
from probing.text.corpus import Corpus

DEFAULT_MEASURES = {
    "classes": ("accuracy", "macro_f1", "log_loss"),
    "real": ("r2", "spearman"),
    "labels": ("macro_f1", "accuracy", "log_loss"),
}
DEFAULT_PROBES = {"classes": ("linear",), "real": ("ridge",), "labels": ("linear",)}


@dataclass(frozen=True)
class ControlSet:
    """Pairs a control of labels with the labels of each of its draws."""

    name: str
    control: Control
    draws: tuple[Labels, ...]

    @property
    def draw_count(self) -> int:
        """Number of draws."""
        return len(self.draws)


@dataclass(frozen=True)
class StateSet:
    """Pairs a state control with the source that its states are read from."""

    control: StateControl
    source: StateSource

    @property
    def name(self) -> str:
        """Name of the control in results."""
        return self.source.name

    @property
    def draw_count(self) -> int:
        """Number of draws."""
        return self.control.draws

    @property
    def recipe(self) -> dict[str, str]:
        """Names and hashes of everything that determines the states that the control puts in place of the model's."""
        return {"class": full_recipe(self.control)["class"], "draws": str(self.control.draws)} | self.source.recipe()


def _listed(given: Any) -> list[Any]:
    return [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)


def _named(folder: str, items: Sequence[Any], build_one: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in _listed(items):
        member = build_one(item)
        name = normalised(folder, item) if isinstance(item, str) else _own_name(folder, member) or spec_of(member)
        if name in found:
            raise BadParameter(f"{name} is given twice", found=name, next_step="name each one once")
        found[name] = member
    return found


def _own_name(folder: str, member: Any) -> str:
    return member.name if folder == "analyses" else ""


def built_probes(items: Sequence[Any] | None, labels: Labels) -> dict[str, Probe]:
    """Build the probes and return them by name; scikit-learn estimators are wrapped. None: the default for the kind of
    target.

    Raises:
        BadParameter: a probe cannot predict a target of this kind, or cannot be fitted on these rows.
    """
    kind: Kind = "real" if labels.kind == "real" else "classes"  # of several labels each is a problem of two classes

    def build_one(item: Any) -> Probe:
        probe = _of_kind(item)
        if probe.row_forms and labels.row_form not in probe.row_forms:
            raise BadParameter(
                f"{spec_of(probe)} cannot read rows that are {labels.level}s",
                needed=f"a task whose rows are read as {' or '.join(probe.row_forms)}",
                found=f"task {labels.task}, read as {labels.row_form}",
                next_step=f"use {DEFAULT_PROBES[kind][0]}",
            )
        return EachLabelProbe(probe) if labels.kind == "labels" else probe

    def _of_kind(item: Any) -> Probe:
        if isinstance(item, str):
            return build("probes", item, kind=kind)  # type: ignore[no-any-return]
        if not isinstance(item, Probe):
            if isinstance(item, type) or not all(callable(getattr(item, name, None)) for name in ("fit", "predict")):
                raise BadParameter(
                    "this is no probe",
                    needed="a recipe, a probe, or an object of scikit-learn with fit and predict",
                    found=repr(item)[:200],
                )
            return SklearnProbe(item) if kind == "classes" else SklearnRegressorProbe(item)
        if kind not in item.kinds:
            raise BadParameter(
                f"{spec_of(item)} cannot predict this target",
                needed=f"a probe for a target of kind {kind!r}",
                found=spec_of(item),
            )
        return item

    return _named("probes", DEFAULT_PROBES[kind] if items is None else items, build_one)


def built_measures(items: Sequence[Any] | None, labels: Labels) -> dict[str, Measure]:
    """Build the measures and return them by name; None: the defaults for the kind of target.

    Raises:
        BadParameter: it is no measure, it has no margin, or it cannot score a target of this kind or these rows.
    """
    kind = labels.kind
    has = {"": True, "pair": labels.level == "pair", "choice": labels.choice is not None}

    def build_one(item: Any) -> Measure:
        measure = build("measures", item) if isinstance(item, str) else item
        if not isinstance(measure, Measure):
            needed = "a recipe, or an object of a class of probing.contracts.Measure"
            raise BadParameter("this is no measure", needed=needed, found=repr(item)[:200])
        check_margin(measure, spec_of(measure))
        if kind not in measure.kinds:
            raise BadParameter(
                f"{spec_of(measure)} does not score a target of kind {kind!r}",
                needed=", ".join(DEFAULT_MEASURES[kind]),
                found=spec_of(measure),
            )
        if not has[measure.needs]:
            raise BadParameter(
                f"{spec_of(measure)} scores {measure.needs}s only",
                needed=f"a task whose rows are {measure.needs}s",
                found=f"task {labels.task}",
                next_step=f"use {', '.join(DEFAULT_MEASURES[kind])}",
            )
        return measure

    return _named("measures", DEFAULT_MEASURES[kind] if items is None else items, build_one)


def built_analyses(items: Sequence[Any], kind: Kind) -> dict[str, Analysis]:
    """Build the analyses and return them by name.

    Raises:
        BadParameter: an analysis cannot be run on a target of this kind.
    """

    def build_one(item: Any) -> Analysis:
        analysis: Analysis = build("analyses", item) if isinstance(item, str) else item
        if kind not in analysis.kinds:
            raise BadParameter(
                f"{spec_of(analysis)} cannot be run on a target of kind {kind!r}",
                needed=f"a target of kind {' or '.join(analysis.kinds)}",
                found=spec_of(analysis),
                next_step="leave it out for this task",
            )
        return analysis

    return _named("analyses", items, build_one)


def named_controls(items: Sequence[Any] | None, labels: Labels) -> list[Control | StateControl]:
    """Build the controls (of labels and of states) and return them; None: word_type for words, else a chance check."""
    default = ("word_type",) if "type" in labels.keys else ("shuffled_labels",)
    return [
        build("controls", item) if isinstance(item, str) else item
        for item in _listed(default if items is None else items)
    ]


def needed_keys(labels: Labels, controls: Sequence[Control | StateControl], probes: Iterable[Probe]) -> list[str]:
    """Return the names of the keys that controls draw by or probes read; a row must have a value of each."""
    wanted = [control.key_of(labels) for control in controls] + [probe.input for probe in probes]
    return [key for key in dict.fromkeys(wanted) if key in labels.keys]


def built_controls(
    items: Sequence[Control | StateControl], probed: Probed
) -> tuple[tuple[ControlSet, ...], tuple[StateSet, ...]]:
    """Build the controls and return two collections: controls of labels with the labels of all their draws, and state
    controls with their sources.

    Raises:
        BadParameter: a control is given twice.
        DegenerateDesign: a control cannot be applied to these labels.
        ProvenanceMismatch, UnknownSite: a control has no states for these rows.
    """
    labels = probed.labels
    sets: list[ControlSet] = []
    sources: list[StateSet] = []
    for control in items:
        if isinstance(control, StateControl):
            sources.append(StateSet(control, control.source(probed)))
        else:
            sets.append(_drawn(control, labels, probed.seed))
    names = [one.name for one in sets] + [one.name for one in sources]
    for twice in {name for name in names if names.count(name) > 1}:
        raise BadParameter(f"control {twice} is given twice", found=twice, next_step="name each one once")
    return tuple(sets), tuple(sources)


def _drawn(control: Control, labels: Labels, seed: int) -> ControlSet:
    if control.draws < 1:
        raise BadParameter(
            f"{type(control).__name__} draws no labels", needed="draws of 1 or more", found=str(control.draws)
        )
    draws = [control.apply(labels, draw=draw, seed=seed) for draw in range(control.draws)]
    for drawn in draws:
        if not isinstance(drawn, Labels) or len(drawn.y) != len(labels.y):
            raise BadParameter(
                f"{type(control).__name__}.apply gives no labels of these rows",
                needed=f"Labels with {len(labels.y):,} values of y",
                found=f"{len(drawn.y):,} values" if isinstance(drawn, Labels) else type(drawn).__name__,
                next_step="return dataclasses.replace(labels, y=…)",
            )
    if lacks_origin(labels, draws):
        warnings.warn(
            f"{type(control).__name__} seems to permute labels, not saying from which rows: intervals of "
            "its score and of the difference from it are too narrow. If so, end it in `return labels.permuted(order)`, "
            "where row i gets the label of row order[i]",
            DoubtfulData,
            stacklevel=2,
        )
    name = draws[0].control.rpartition("#")[0]
    if ":" not in name:  # a control with other parameters is another control
        name = spec_of(control, without="draws", called=name)
        draws = [replace(drawn, control=f"{name}#{draw}") for draw, drawn in enumerate(draws)]
    return ControlSet(name, control, tuple(draws))


def lacks_origin(labels: Labels, draws: Sequence[Labels]) -> bool:
    """Return whether all draws of a control hold the labels of the task on other rows, without `Labels.origin`.

    Not asked of labels that are drawn by a key (`Labels.seen`), nor of alternatives, of which one is always right.

    Args:
        labels: labels of the task.
        draws: labels of each draw of the control.
    """
    if labels.choice is not None or any(one.origin is not None or one.seen is not None for one in draws):
        return False
    values, counts = np.unique(labels.y, axis=0, return_counts=True)
    found = [np.unique(one.y, axis=0, return_counts=True) for one in draws]
    same = all(np.array_equal(values, of_draw) and np.array_equal(counts, n) for of_draw, n in found)
    return same and not all(np.array_equal(one.y, labels.y) for one in draws)


BESIDE_NON_LINEAR = ("text_mlp",)  # baselines that only probes that are not linear are compared with


def is_beyond_linear(probe: Probe) -> bool:
    """Return whether a probe reads states and is not linear, so that it may combine what it reads."""
    return probe.input in ("states", "pieces") and not probe.is_linear


def built_baselines(labels: Labels, probes: Iterable[Probe] = ()) -> dict[str, Probe]:
    """Return the baselines that are fitted and need no states: those that read only the labels, and those that read the
    word, the text or the word order; beside probes of texts of which one is not linear, also one that combines words.
    """
    of_texts = ["text_length", "bag_of_words", "tfidf", "character_ngrams", "nearest_text"]
    of_texts += BESIDE_NON_LINEAR if any(map(is_beyond_linear, probes)) else ()
    by_key = {"type": ["word_type"], "offset": ["linear_order"], "text": of_texts}
    names = ["prior", *(name for key, of_key in by_key.items() if key in labels.keys for name in of_key)]
    if labels.kind == "labels":
        return {name: EachLabelProbe(build("probes", name, kind="classes")) for name in names}
    return {name: build("probes", name, kind=labels.kind) for name in names}


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
