"""Results of one task in several models: curves over training steps and sizes, and paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from probing.errors import ProbingError
from probing.reporting.blocks import Number
from probing.reporting.charts import Chart, panel_chart
from probing.reporting.grids import HeatMap, map_chart
from probing.reporting.panels import SHARES, Curve, Panel, Point, baseline_levels
from probing.reporting.task_results import ScoresOnTest, TaskResults, distinct, score, site_order
from probing.reporting.wording import Interval, decimal, interval, measure_title, probability, short
from probing.results.models import ModelFacts, size
from probing.results.probe import ProbeResult, Score

Pair = tuple[int, int]  # numbers of two models: the score of the first less that of the second


@dataclass(frozen=True)
class Series:
    """Lists the models to compare along one quantity, such as size or training step.

    Attributes:
        what: the quantity, `step` or `size`.
        name: name of the training run, or `trained` or `untrained`.
        models: numbers of the models, in increasing order of the quantity.
    """

    what: str
    name: str
    models: tuple[int, ...]


@dataclass(frozen=True)
class AcrossModels:
    """Holds the results of one task in several models, each probed once.

    Attributes:
        tasks: the results of each model, in the order of `ModelFacts.order`.
        pairs: paired differences of each model from its reference, and of the ends of each curve, at the best site of
            each model on dev, with the columns of `compare`; empty if the results are not in one folder.
        by_site: paired differences of a model from its reference at each site that both have, for the probe that is
            best in the first model.
        doubt: reason why differences could not be tested; "" if they were tested or not requested.
    """

    tasks: tuple[TaskResults, ...]
    pairs: Mapping[Pair, dict[str, Any]] = field(default_factory=dict)
    by_site: Mapping[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    doubt: str = ""

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.tasks[0].task

    @property
    def models(self) -> list[ModelFacts]:
        """Facts of the models, in the order of `tasks`."""
        return [task.model for task in self.tasks]

    @property
    def names(self) -> list[str]:
        """Short and distinct names of the models."""
        return distinct([(one.place, f"run {one.run}" if one.run else "", one.label) for one in self.models])

    def reference(self, i: int) -> int | None:
        """Return the index of the model that model `i` is compared with: for a checkpoint the first step of its
        training run; for another trained model its untrained twin (the same architecture with random weights) or else
        the smallest trained model. Return None if there is none.
        """
        own, series = self.models[i], [one for one in self.series() if i in one.models]
        twins = [k for k, one in enumerate(self.models) if one.is_untrained and one.origin == own.origin]
        if any(one.what == "step" for one in series):
            found = series[0].models[0]
        elif own.is_untrained:
            found = i
        else:
            found = twins[0] if twins else series[0].models[0] if series else 0
        return None if found == i else found

    def pair(self, i: int) -> Mapping[str, Any] | None:
        """Return the paired difference of a model from its reference, with the columns of `compare`; None if it was not
        tested.
        """
        of = self.reference(i)
        return None if of is None else self.pairs.get((i, of))

    def series(self) -> list[Series]:
        """Return the series over which curves are drawn: the steps of each run with several steps, and the sizes of
        trained and of untrained models if there are several.
        """
        models = self.models
        runs = dict.fromkeys(one.run for one in models if one.step is not None)
        stepped = {run: _rising(models, lambda one, run=run: one.step if one.run == run else None) for run in runs}  # type: ignore[misc]
        last = {found[-1] for found in stepped.values()}

        def final(one: int, untrained: bool) -> bool:
            return models[one].is_untrained == untrained and (models[one].step is None or one in last)

        sized = {
            name: _rising(models, lambda one: one.parameters, [i for i in range(len(models)) if final(i, untrained)])
            for name, untrained in (("trained", False), ("untrained", True))
        }
        found = [Series("step", run, many) for run, many in stepped.items() if len(many) > 1]
        return found + [Series("size", name, many) for name, many in sized.items() if len(many) > 1]


def _rising(
    models: Sequence[ModelFacts], value: Callable[[ModelFacts], int | None], among: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the numbers of the models that have a value, by rising value; of equal ones the first."""
    found: dict[int, int] = {}
    for i in range(len(models)) if among is None else among:
        if (known := value(models[i])) is not None:
            found.setdefault(known, i)
    return tuple(found[known] for known in sorted(found))


def across_models(tasks: Sequence[TaskResults], folder: Path | None = None) -> list[AcrossModels]:
    """Return an entry for each task that was probed once in each of several models; if `folder` names the results, with
    paired differences between models.
    """
    found = []
    for name in dict.fromkeys(task.task for task in tasks):
        group = [task for task in tasks if task.task == name and task.best() is not None]
        models = [task.model.model for task in group]
        if len(group) > 1 and len(set(models)) == len(models):
            found.append(_compared(AcrossModels(tuple(group)), folder))
    return found


def _compared(across: AcrossModels, folder: Path | None) -> AcrossModels:
    if folder is None:
        return across
    best = [result for task in across.tasks if (result := task.best()) is not None]
    known = {i: of for i in range(len(best)) if (of := across.reference(i)) is not None}
    wanted = list(dict.fromkeys([*known.items(), *_ends(across)]))
    measure, probe = across.tasks[0].primary, best[0].probe
    at_site = [
        (i, site, here, first)
        for i, of in known.items()
        for site in across.tasks[i].sites
        if (here := across.tasks[i].at(site, probe)) and (first := across.tasks[of].at(site, probe))
    ]
    listed = [result for _, _, here, first in at_site for result in (here, first)]
    numbers = [(2 * i, 2 * i + 1) for i in range(len(at_site))]
    try:
        differences = import_module("probing.training.comparing").differences
        pairs = differences(folder, best, wanted, measure=measure)
        rows = differences(folder, listed, numbers, measure=measure) if listed else []
    except ProbingError as error:  # of other rows or seeds; or the samples were not kept
        reason = f"{error.message} ({error.found})" if error.found else error.message
        return AcrossModels(across.tasks, doubt=f"Differences between models are not tested: {reason}.")
    by_site = {(i, site): row for (i, site, _, _), row in zip(at_site, rows, strict=True)}
    return AcrossModels(across.tasks, dict(zip(wanted, pairs, strict=True)), by_site)


def _ends(across: AcrossModels) -> list[Pair]:
    """Return the last and first model of each curve."""
    return [(one.models[-1], one.models[0]) for one in across.series()]


def best_of(task: TaskResults) -> ProbeResult:
    """Return the best result on dev of a task that has one, as those of `AcrossModels` do."""
    best = task.best()
    assert best is not None
    return best


def claims(across: AcrossModels) -> list[str]:
    """Return a sentence for each curve, with the scores at its ends and their paired difference, and one for each other
    model against its reference.
    """
    found = []
    for one in across.series():
        first, last = one.models[0], one.models[-1]
        names = [across.models[i] for i in (first, last)]
        if one.what == "step":
            over = f"Over training{f' ({one.name})' if one.name else ''}, step {names[0].step:,} to {names[1].step:,}"
        else:
            over = (
                f"By size of {one.name} models, {' to '.join(size(name.parameters or 0) for name in names)} parameters"
            )
        found.append(f"{over}: {_from_to(across, last, first)}")
    ends = _ends(across)
    apart = [i for i, model in enumerate(across.models) if model.step is None and not (model.is_untrained and found)]
    return found + [
        f"{across.models[i].title} against {across.models[of].title}: {_from_to(across, i, of)}"
        for i in apart
        if (of := across.reference(i)) is not None and (i, of) not in ends
    ]


def _from_to(across: AcrossModels, last: int, first: int) -> str:
    """Return `.41 at resid.1 → .97 at resid.3 (+0.560 [0.500, 0.610], adjusted p < 0.001)`."""
    before, after = (_best_score(across.tasks[i]) for i in (first, last))
    said, row = f"{before} → {after}", across.pairs.get((last, first))
    if not row:
        return said
    return (
        f"{said} ({difference(row).text} {difference(row).small}, adjusted p {probability(float(row['p_adjusted']))})"
    )


def _best_score(task: TaskResults) -> str:
    found = task.on_test(best_of(task)).score
    return f"{short(found.value if found else None, 2)} at {best_of(task).site}"


def of_pair(row: Mapping[str, Any]) -> Interval:
    """Return a paired difference of `compare` with its interval."""
    return Interval(float(row["difference"]), float(row["low"]), float(row["high"]))


def difference(row: Mapping[str, Any]) -> Number:
    """Return a paired difference as a cell, with its sign."""
    found = of_pair(row)
    return Number(f"{'+' if found.value > 0 else ''}{decimal(found.value)}", interval(found))


def notes(across: AcrossModels) -> list[str]:
    """Return sentences on problems of the comparison: models with equal weights, checkpoints of one run with different
    architectures, differences that were not tested.
    """
    same = Counter(one.weights for one in across.models if one.weights)
    twice = [[one.label for one in across.models if one.weights == weights] for weights, n in same.items() if n > 1]
    found = [f"The weights are the same: {' and '.join(labels)}." for labels in twice]
    builds = {
        run: {
            (one.architecture, one.layers, one.width)
            for one in across.models
            if one.step is not None and one.run == run
        }
        for run in {one.run for one in across.models}
    }
    mixed = [run for run, kinds in builds.items() if len(kinds) > 1]
    found += [f"Checkpoints of {'one run' if not run else f'run {run}'} have different architectures." for run in mixed]
    return found + ([across.doubt] if across.doubt else [])


def panels(across: AcrossModels) -> list[Panel]:
    """Return a panel of scores over training steps and one over model sizes, at the best site of each model, if there
    are several steps or sizes.
    """
    series = across.series()
    found = []
    for what, label in (("step", "training step"), ("size", "parameters")):
        here = [one for one in series if one.what == what]
        if here:
            found.append(_panel(across, here, label))
    return found


def _panel(across: AcrossModels, series: Sequence[Series], label: str) -> Panel:
    first, models = across.tasks[0], across.models
    is_step = series[0].what == "step"
    value = {i: (models[i].step if is_step else models[i].parameters) or 0 for one in series for i in one.models}
    places = sorted(set(value.values()))
    title = measure_title(first.primary)
    curves: list[Curve] = []
    for part, one in enumerate(series):
        at = [(places.index(value[i]), i) for i in one.models]
        name = title if len(series) == 1 else f"{title}, {one.name or 'the other run'}"
        curves.append(Curve(name, "task", _points(across, at, lambda scores: scores.score), part))
        if len(series) == 1:
            curves.append(Curve("selectivity", "selectivity", _points(across, at, lambda scores: scores.selectivity)))
    levels = baseline_levels(first, first.primary)
    used = {i for one in series for i in one.models}
    for part, i in enumerate(i for i, one in enumerate(models) if i not in used and is_step):
        points = _points(across, [(0, i)], lambda scores: scores.score)
        levels += [Curve(across.names[i], "other", points, part + 1)] if points else []
    names = tuple(f"{place:,}" if is_step else size(place) for place in places)
    drawn = tuple(curve for curve in curves if curve.points)
    numbers = tuple(map(float, places))
    about = f"{title} at the best site, by {label}"
    return Panel(about, title, names, drawn, tuple(levels), most=SHARES, x_label=label, places=numbers)


Find = Callable[[ScoresOnTest], Score | None]


def _points(across: AcrossModels, at: Sequence[tuple[int, int]], find: Find) -> tuple[Point, ...]:
    points = []
    for x, i in at:
        result = best_of(across.tasks[i])
        found = find(across.tasks[i].on_test(result))
        if found is not None:
            points.append(Point(x, found.value, found.low, found.high, note=f"{result.site}, {result.probe}"))
    return tuple(points)


def site_map(across: AcrossModels) -> HeatMap | None:
    """Return the scores of every model at every site, for the probe that is best in this model; None if no site was
    scored.
    """
    sites = sorted({site for task in across.tasks for site in task.sites}, key=site_order)
    cells, units = [], []
    for name, task in zip(across.names, across.tasks, strict=True):
        for site in sites:
            result = task.at(site, best_of(task).probe)
            if result and (found := score(result, task.primary)):
                cells.append((site, name, found.score.value))
                units.append(found.score.unit)
    if not cells:
        return None
    title = f"{measure_title(across.tasks[0].primary)} by site"
    more: dict[str, Any] = {
        "rows": sites,
        "columns": across.names,
        "is_upward": True,
        "is_share": units[0] in ("fraction", "R²"),
    }
    return HeatMap.of_cells(title, cells, "on test", "site", "model", **more)


def charts(across: AcrossModels) -> list[Chart]:
    """Return the charts of curves over steps and sizes, and of the map of sites by models."""
    found = site_map(across)
    return [*(panel_chart(panel) for panel in panels(across)), *([map_chart(found)] if found else [])]
