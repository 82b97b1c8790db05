"""One task in several models: curves over training steps and sizes, and paired differences, for page and terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from probing.errors import ProbingError
from probing.reporting.blocks import Figure, Fold, Number, Section, Table, number
from probing.reporting.charts import Chart, described, panel_chart
from probing.reporting.findings import finding
from probing.reporting.grids import HeatMap, map_chart
from probing.reporting.panels import Curve, Panel, Point, baseline_levels
from probing.reporting.tables import grid
from probing.reporting.task_results import TaskResults, comparison, distinct, least_gain, score, site_order
from probing.reporting.wording import correction_title, decimal, measure_title, p_value, plain_score, plural
from probing.results.models import ModelFacts, size
from probing.results.probe import MeasureResult, ProbeResult, Score
from probing.system.screen import shown
from probing.training.comparing import differences

Pair = tuple[int, int]  # numbers of two models: the score of the first less that of the second


@dataclass(frozen=True)
class Series:
    """Models along one quantity: `what` is `step` or `size`; `models` are their numbers, by rising value."""

    what: str
    name: str
    models: tuple[int, ...]


@dataclass(frozen=True)
class AcrossModels:
    """Holds the results of one task in several models, each of which was probed with the same settings.

    Attributes:
        tasks: the results of each model, in the order of `ModelFacts.order`.
        pairs: paired differences at each model's best site on dev, as `compare` gives them; empty where the results are
            not of one folder.
        by_site: the same between models at each site that both have, for the probe of the first model's best site.
        doubt: why there are no differences; "": there are, or they were not asked for.
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
        """The models."""
        return [task.model for task in self.tasks]

    @property
    def names(self) -> list[str]:
        """Short names of the models, each another."""
        return distinct([(one.place, f"run {one.run}" if one.run else "", one.label) for one in self.models])

    def series(self) -> list[Series]:
        """Return what curves are drawn over: the steps of each run with several, and sizes if there are several."""
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
    """Return each task that was probed once in each of several models; with the folder of the results, also paired
    differences of the models.
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
    wanted = list(dict.fromkeys([*((i, 0) for i in range(1, len(best))), *_ends(across)]))
    measure, probe = across.tasks[0].primary, best[0].probe
    at_site = [
        (i, site, here, first)
        for i, task in enumerate(across.tasks[1:], start=1)
        for site in across.tasks[0].sites
        if (here := task.at(site, probe)) is not None and (first := across.tasks[0].at(site, probe)) is not None
    ]
    listed = [result for _, _, here, first in at_site for result in (here, first)]
    numbers = [(2 * i, 2 * i + 1) for i in range(len(at_site))]
    try:
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


def _best(task: TaskResults) -> tuple[ProbeResult, MeasureResult | None]:
    best = task.best()
    assert best is not None
    return best, score(best, task.primary)


def claims(across: AcrossModels) -> list[str]:
    """Return a sentence for each curve, or where there is none for each model against the first: the scores at the
    ends, and their paired difference.
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
    return found or [
        f"{across.models[i].label} against {across.models[0].label}: {_from_to(across, i, 0)}"
        for i in range(1, len(across.tasks))
    ]


def _from_to(across: AcrossModels, last: int, first: int) -> str:
    """Return `.41 at resid.1 → .97 at resid.3 (+0.560 [0.500, 0.610], adjusted p < 0.001)`."""
    (one, before), (other, after) = (_best(across.tasks[i]) for i in (first, last))
    said = f"{plain_score(before)} at {one.site} → {plain_score(after)} at {other.site}"
    row = across.pairs.get((last, first))
    return said + (f" ({_difference(row).text} {_difference(row).small}, {_adjusted(row)})" if row else "")


def _difference(row: Mapping[str, Any]) -> Number:
    value = float(row["difference"])
    return Number(
        f"{'+' if value > 0 else ''}{decimal(value)}", f"[{decimal(float(row['low']))}, {decimal(float(row['high']))}]"
    )


def _adjusted(row: Mapping[str, Any]) -> str:
    p = p_value(float(row["p_adjusted"]))
    return f"adjusted p {p if p.startswith('<') else f'= {p}'}"


def notes(across: AcrossModels) -> list[str]:
    """Return what makes the comparison doubtful: equal weights, other settings, differences that are not tested."""
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
    """Return a panel over steps, and one over sizes, at the best site of each model, where there are several."""
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
        curves.append(Curve(name, "task", _points(across, at, lambda _, found: found.score), part))
        if len(series) == 1:
            against = {"control": lambda c: c.score, "selectivity": lambda c: c.selectivity}
            for role in ("control", "selectivity"):
                curves.append(Curve(role, role, _points(across, at, _of_control(against[role]))))  # type: ignore[arg-type]
    levels = baseline_levels(first, first.primary)
    used = {i for one in series for i in one.models}
    for part, i in enumerate(i for i, one in enumerate(models) if i not in used and is_step):
        points = _points(across, [(0, i)], lambda _, found: found.score)
        levels += [Curve(across.names[i], "other", points, part + 1)] if points else []
    return Panel(
        f"{title} at the best site, by {label}",
        title,
        tuple(f"{place:,}" if is_step else size(place) for place in places),
        tuple(curve for curve in curves if curve.points),
        tuple(levels),
        (0.0, 1.0),
        (-0.5, 1.05),
        label,
        places=tuple(map(float, places)),
    )


Find = Callable[[TaskResults, MeasureResult], Score | None]


def _of_control(which: Callable[[Any], Score]) -> Find:
    def find(task: TaskResults, found: MeasureResult) -> Score | None:
        against = comparison(found, next(iter(task.controls()), None))
        return which(against) if against else None

    return find


def _points(across: AcrossModels, at: Sequence[tuple[int, int]], find: Find) -> tuple[Point, ...]:
    points = []
    for x, i in at:
        result, measured = _best(across.tasks[i])
        found = find(across.tasks[i], measured) if measured else None
        if found is not None:
            points.append(Point(x, found.value, found.low, found.high, note=f"{result.site}, {result.probe}"))
    return tuple(points)


def site_map(across: AcrossModels) -> HeatMap | None:
    """Return the scores of every model at every site, for the probe of its best site; None where no site was scored."""
    sites = sorted({site for task in across.tasks for site in task.sites}, key=site_order)
    values = np.full((len(sites), len(across.tasks)), np.nan)
    for column, task in enumerate(across.tasks):
        for row, site in enumerate(sites):
            result = task.at(site, _best(task)[0].probe)
            found = score(result, task.primary) if result else None
            values[row, column] = found.score.value if found else np.nan
    title = measure_title(across.tasks[0].primary)
    if not np.isfinite(values).any():
        return None
    unit = next(m.score.unit for task in across.tasks if (m := _best(task)[1]))
    is_share = unit in ("fraction", "R²")
    return HeatMap(
        f"{title} by site", tuple(sites), tuple(across.names), values, "on test", "site", "model", True, is_share
    )


def charts(across: AcrossModels) -> list[Chart]:
    """Return the curves over steps and sizes, and the map of sites by models."""
    found = site_map(across)
    return [*(panel_chart(panel) for panel in panels(across)), *([map_chart(found)] if found else [])]


HEAD = ("model", "step", "parameters", "best site", "score", "control", "selectivity", "gain over baseline", "finding")


def rows(across: AcrossModels) -> tuple[list[str], list[list[str | Number]]]:
    """Return headings, and a row for each model at its site and probe that are best on dev."""
    is_stepped = any(one.step is not None for one in across.models)
    head = [name for name in HEAD if name != "step" or is_stepped]
    head += [f"less {across.names[0]}", "adjusted p", "detectable"] if across.pairs else []
    return head, [_row(across, i, is_stepped) for i in range(len(across.tasks))]


def _row(across: AcrossModels, i: int, is_stepped: bool) -> list[str | Number]:
    task, model = across.tasks[i], across.models[i]
    result, measured = _best(task)
    against, gain = comparison(measured, next(iter(task.controls()), None)), least_gain(measured)
    row: list[str | Number] = [model.label]
    row += ["–" if model.step is None else f"{model.step:,}"] if is_stepped else []
    row += ["–" if model.parameters is None else f"{model.parameters:,}", f"{result.site}, {result.probe}"]
    scores = [measured, against, gain]
    row += [number(scores[0].score if measured else None), number(against.score if against else None)]  # type: ignore[union-attr]
    row += [number(against.selectivity if against else None), number(gain.gain if gain else None)]
    row.append(finding(task).status)
    if across.pairs:
        pair = across.pairs.get((i, 0))
        row += [_difference(pair), p_value(pair["p_adjusted"]), decimal(pair["detectable"])] if pair else ["–"] * 3
    return row


def section(across: AcrossModels, anchor: str) -> Section:
    """Return the section of one task in several models."""
    drawn, found = panels(across), site_map(across)
    described_map = [found.description] if found else []
    head, body = rows(across)
    caption = (
        "Test rows, at the site and probe that are best on dev for each model; bands are 95 % intervals. Dotted: "
        "baselines that read no state, and so no model. The map has every site."
    )
    figure = Figure(charts(across), caption if drawn else "", ". ".join([described(drawn), *described_map]))
    texts = (0, head.index("best site"), head.index("finding"))
    table = Table(f"Each model at the site and probe that are best on dev.{_tested(across)}", head, body, texts)
    folds = [Fold("Differences at each site", [_site_table(across)])] if across.by_site else []
    title = f"{across.task} in {plural(len(across.tasks), 'model')}"
    said = [f"{claim}." for claim in claims(across)]
    return Section(
        anchor,
        title,
        [t.states for t in across.tasks],
        claims=said,
        notes=notes(across),
        blocks=[figure, table],
        folds=folds,
    )


def _tested(across: AcrossModels) -> str:
    """Return what the differences in a table are."""
    if not across.pairs:
        return ""
    row = next(iter(across.pairs.values()))
    how = f"{correction_title(row['correction'])}-adjusted over {plural(len(across.pairs), 'pair')}"
    return (
        f" Differences from {across.names[0]} are paired, on the same {row['n']:,} rows and resamples; p is {how}; "
        "detectable: the smallest true difference that would have been shown with 80 % probability."
    )


def _site_table(across: AcrossModels) -> Table:
    sites = [site for site in across.tasks[0].sites if any(site == other for _, other in across.by_site)]
    found = [
        [
            site,
            *(_difference(row) if (row := across.by_site.get((i, site))) else "–" for i in range(1, len(across.tasks))),
        ]
        for site in sites
    ]
    said = (
        f"Score less that of {across.names[0]} at the same site, by {_best(across.tasks[0])[0].probe}: paired, with "
        "95 % intervals that are not adjusted."
    )
    return Table(said, ["site", *across.names[1:]], found)


def print_across(across: Sequence[AcrossModels], console: Console, *, details: bool) -> None:
    """Print a line for each task and curve, below with `details` a table of its models."""
    for one in across:
        if details:
            head, body = rows(one)
            table = grid(head, texts=(0, head.index("best site"), head.index("finding")))
            for row in body:
                table.add_row(
                    *(shown(cell if isinstance(cell, str) else f"{cell.text} {cell.small}".strip()) for cell in row)
                )
            console.print(shown(f"{one.task} in {plural(len(one.tasks), 'model')}", style="bold"))
            console.print(table)
        for claim in claims(one):
            console.print(shown(f"{one.task}: {claim[:1].lower()}{claim[1:]}"))
        for note in notes(one):
            console.print(shown(f"warning: {one.task}: {note}", style="bold yellow"))
