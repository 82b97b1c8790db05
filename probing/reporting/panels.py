"""Makes panels: the curves of probes and analyses over sites that charts draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from probing.reporting.task_results import TaskResults, connected, score, split_site
from probing.reporting.wording import Estimate, measure_title, quantity_title
from probing.results.analysis import AnalysisResult
from probing.results.analysis import Point as Number
from probing.results.probe import ProbeResult

Role = Literal["task", "other", "control", "selectivity", "ceiling", "baseline", "entropy"]


@dataclass(frozen=True)
class Point:
    """Holds a score at the site with index `x`; `low` and `high` are None if it has no interval.

    `mark` is the shape of the point ("": no special mark), `note` a text for its tooltip.
    """

    x: int
    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""
    note: str = ""


def points(values: Iterable[tuple[int, Estimate | None]]) -> tuple[Point, ...]:
    """Return the points of pairs (index of a site, value with its interval), without those whose value is None."""
    return tuple(Point(x, found.value, found.low, found.high) for x, found in values if found is not None)


@dataclass(frozen=True)
class Curve:
    """Holds a named line over sites.

    `part` numbers curves with the same role. With `bars`, each interval is drawn separately, shifted to the right by
    `shift` (in steps between sites), so that intervals of several curves do not overlap.
    """

    name: str
    role: Role
    points: tuple[Point, ...]
    part: int = 0
    bars: bool = False
    shift: float = 0.0


SHARES, ANY = (-0.5, 1.05), (-1e12, 1e12)  # largest ranges of an axis


@dataclass(frozen=True)
class Panel:
    """Holds a set of axes with its curves.

    Attributes:
        title: title of the panel.
        y_label: measure and unit.
        sites: names of the sites on the x axis.
        curves: lines with intervals.
        levels: horizontal lines: baselines, label entropy.
        least, most: smallest and largest range of the y axis.
        x_label: label of the x axis; "" if it shows sites.
        places: numeric x coordinate of each of `sites`, such as training steps; empty: sites are evenly spaced.
        band: shaded range of values too small to be of interest; None: no band.
    """

    title: str
    y_label: str
    sites: tuple[str, ...]
    curves: tuple[Curve, ...]
    levels: tuple[Curve, ...] = ()
    least: tuple[float, float] = (0.0, 1.0)
    most: tuple[float, float] = ANY
    x_label: str = ""
    band: tuple[float, float] | None = None
    places: tuple[float, ...] = ()

    def x_ticks(self) -> tuple[tuple[str, ...], str]:
        """Return the short names of the ticks on the x axis, and the axis label."""
        return (self.sites, self.x_label) if self.x_label else site_ticks(self.sites)

    def y_range(self) -> tuple[float, float]:
        """Return the lowest and highest value of the y axis: the range of all values, at least `least` and at most
        `most`.
        """
        drawn = [p for curve in (*self.curves, *self.levels) for p in curve.points]
        values = [v for p in drawn for v in (p.value, p.low, p.high) if v is not None]
        values += self.band or ()
        low, high = min([self.least[0], *values]), max([self.least[1], *values])
        return max(low, self.most[0]), min(high, self.most[1])

    def runs(self, curve: Curve) -> list[list[Point]]:
        """Split a curve at neighbours of different streams, which no line should join, and return the parts."""
        pieces: list[list[Point]] = []
        for point in curve.points:
            joined = pieces and connected(self.sites[pieces[-1][-1].x], self.sites[point.x])
            if joined:
                pieces[-1].append(point)
            else:
                pieces.append([point])
        return pieces


def score_panels(task: TaskResults, *, best: bool = False) -> list[Panel]:
    """Return one panel per probe and control: task score, control score, selectivity, ceiling and baselines over sites;
    the probe that is best on dev comes first; with `best`, only its panel with the first control is returned.
    """
    chosen = task.best()
    probes = sorted(task.probes, key=lambda probe: chosen is None or probe != chosen.probe)
    panels = [_score_panel(task, probe, control) for probe in probes for control in _controls_of(task, probe) or [None]]
    return panels[:1] if best else panels


def loss_panel(task: TaskResults) -> Panel | None:
    """Return a panel of the log loss of every probe over sites, in bits, with the baselines and the label entropy; None
    if log loss was not scored.
    """
    curves = []
    for part, probe in enumerate(task.probes):
        scored = [(x, score(result, "log_loss")) for x, result in _of_probe(task, probe)]
        drawn = points((x, found.score) for x, found in scored if found is not None)
        curves += [Curve(probe, "task", drawn, part)] if drawn else []
    if not curves:
        return None
    entropy = task.any.facts.get("entropy_bits")
    levels = baseline_levels(task, "log_loss")
    if isinstance(entropy, float | int):
        levels.append(Curve("label entropy", "entropy", (Point(0, float(entropy)),)))
    return Panel(
        "Log loss over sites", "bits per label", task.sites, tuple(curves), tuple(levels), (0.0, 0.1), (0.0, 1e9)
    )


def site_ticks(sites: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return short names of sites, and the axis label; the names are layer numbers if all sites with layers are of one
    stream.
    """
    streams = [split_site(site) for site in sites]
    layered = {stream for stream, layer in streams if layer >= 0}
    if len(layered) != 1 or len(sites) < 3:
        return tuple(sites), "site"
    stream = next(iter(layered))
    short = {"embed": "emb", "final_norm": "norm"}
    names = (
        str(layer) if layer >= 0 else short.get(site, site) for site, (_, layer) in zip(sites, streams, strict=True)
    )
    return tuple(names), f"layer of {stream}"


def _of_probe(task: TaskResults, probe: str) -> list[tuple[int, ProbeResult]]:
    """Return the results of a probe with the indices of their sites."""
    return [(task.sites.index(result.site), result) for result in task.results if result.probe == probe]


def _score_panel(task: TaskResults, probe: str, control: str | None) -> Panel:
    at = [(x, task.on_test(result, control or "")) for x, result in _of_probe(task, probe)]
    title = measure_title(task.primary)
    curves = [Curve(title, "task", points((x, scores.score) for x, scores in at))]
    if control is not None:
        ceilings = tuple(Point(x, scores.ceiling) for x, scores in at if scores.ceiling is not None)
        curves += [
            Curve("control", "control", points((x, scores.control) for x, scores in at)),
            Curve("selectivity", "selectivity", points((x, scores.selectivity) for x, scores in at)),
            Curve("ceiling", "ceiling", ceilings),
        ]
    drawn = tuple(curve for curve in curves if curve.points)
    name = f"{probe}, control {control}" if control else probe
    return Panel(name, title, task.sites, drawn, tuple(baseline_levels(task, task.primary)), most=SHARES)


def _controls_of(task: TaskResults, probe: str) -> list[str | None]:
    """Return the controls that this probe was compared with at some site."""
    own = [result for _, result in _of_probe(task, probe)]
    return [name for name in task.controls() if any(task.on_test(result, name).control for result in own)]


def baseline_levels(task: TaskResults, measure: str) -> list[Curve]:
    """Return the scores of the baselines, which read no state, as horizontal lines."""
    found = [(result.probe, m.score) for result in task.baselines if (m := score(result, measure)) is not None]
    return [Curve(probe, "baseline", points([(0, own)]), part) for part, (probe, own) in enumerate(found)]


_AXES = {"rows": "training rows seen", "k": "coordinates", "coordinates": "coordinates"}


def analysis_panels(task: TaskResults, results: Sequence[AnalysisResult]) -> list[Panel]:
    """Return the panels of one analysis of one probe.

    Quantities with one value per site are drawn over sites; quantities measured along another axis (such as a rank or
    the number of training rows) are drawn along it at the site that is best on dev.
    """
    over_sites = [_over_sites(task, results, name) for name in quantities(results, along=False)]
    chosen = chosen_result(task, results)
    along = [_along(chosen, names, x_name) for x_name, names in _curves_along(chosen).items()]
    return [panel for panel in (*over_sites, *along) if panel.curves]


def chosen_result(task: TaskResults, results: Sequence[AnalysisResult]) -> AnalysisResult:
    best = task.best(results[0].probe)
    return next((result for result in results if best and result.site == best.site), results[-1])


def quantities(results: Iterable[AnalysisResult], *, along: bool) -> list[str]:
    return list(dict.fromkeys(p.quantity for r in results for p in r.points if (p.x is not None) == along))


def _curves_along(result: AnalysisResult) -> dict[str, list[str]]:
    """Return the quantities by what they are measured along and their unit, so that each panel has one of both."""
    found: dict[str, list[str]] = {}
    for point in result.points:
        if point.x is not None and point.quantity not in found.setdefault(point.x_name, []):
            found[point.x_name].append(point.quantity)
    return found


def _over_sites(task: TaskResults, results: Sequence[AnalysisResult], quantity: str) -> Panel:
    sites = tuple(site for site in task.sites if any(result.site == site for result in results))
    controls = dict.fromkeys(p.control for r in results for p in r.of(quantity, control=None))
    curves = []
    for part, control in enumerate(controls):
        means = [(sites.index(r.site), mean(r.of(quantity, control=control))) for r in results if r.site in sites]
        drawn = points(sorted(means, key=lambda pair: pair[0]))
        curves.append(Curve(control or "task", _role(quantity, control), drawn, part))
    unit = next(p.unit for r in results for p in r.of(quantity, control=None))
    title, least = quantity_title(quantity), (0.0, _least(unit))
    return Panel(title, _axis(quantity, unit), sites, tuple(curves), least=least)


def _along(result: AnalysisResult, quantities: Sequence[str], x_name: str) -> Panel:
    own = [p for p in result.points if p.x is not None and p.x_name == x_name]
    values = sorted({p.x for p in own if p.x is not None})
    curves = []
    for part, name in enumerate(quantities):
        for control in dict.fromkeys(p.control for p in own if p.quantity == name):
            chosen = [p for p in own if (p.quantity, p.control) == (name, control)]
            drawn = points((i, mean([p for p in chosen if p.x == x])) for i, x in enumerate(values))
            called = control if control and name != "selectivity" else quantity_title(name)
            curves.append(Curve(called, _role(name, control), drawn, part))
    title = f"{', '.join(map(quantity_title, quantities))} at {result.site}"
    names, least = tuple(f"{x:g}" for x in values), (0.0, _least(own[0].unit))
    axis, x_label = _axis(quantities[0], own[0].unit), _AXES.get(x_name, x_name)
    return Panel(title, axis, names, tuple(curves), least=least, x_label=x_label)


def _role(quantity: str, control: str) -> Role:
    return "selectivity" if quantity == "selectivity" else "control" if control else "task"


def mean(points: Sequence[Number]) -> Number | None:
    """Return the mean over draws: the point with a negative draw number if there is one, else the computed mean; None
    if there are no points.
    """
    told = [p for p in points if p.draw < 0]
    if told or not points:
        return told[0] if told else None
    return Number(points[0].quantity, float(np.mean([p.value for p in points])), points[0].unit)


def _axis(quantity: str, unit: str) -> str:
    return unit if unit != "fraction" else quantity_title(quantity)


def _least(unit: str) -> float:
    return 1.0 if unit in ("fraction", "R²") else 0.1
