"""Curves over sites, of probes, analyses and use: what charts draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from probing.reporting.task_results import TaskResults, comparison, connected, score, split_site
from probing.reporting.use_words import MARKS, SHORT
from probing.reporting.wording import measure_title, quantity_title
from probing.results.analysis import AnalysisResult
from probing.results.analysis import Point as Number
from probing.results.probe import ProbeResult, Score
from probing.results.use import EditEffect, UseCell, UseResult
from probing.verdicts.use_run import UseRun
from probing.verdicts.verdict import Verdict, Word

Role = Literal["task", "other", "control", "selectivity", "ceiling", "baseline", "entropy"]


@dataclass(frozen=True)
class Point:
    """A score at the site with ordinal `x`; `low` and `high` are None where it has no interval.

    `mark` is the shape drawn ("": that of the curve's role), `note` a text added to its tooltip.
    """

    x: int
    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """A named line over sites.

    `part` numbers curves with the same role. With `bars`, each interval is drawn separately, shifted to the right by
    `shift` (in steps between sites), so that intervals of several curves do not overlap.
    """

    name: str
    role: Role
    points: tuple[Point, ...]
    part: int = 0
    bars: bool = False
    shift: float = 0.0


@dataclass(frozen=True)
class Panel:
    """A set of axes with its curves.

    Attributes:
        title: what the panel shows.
        y_label: measure and unit.
        sites: names of the sites on the x axis.
        curves: lines with intervals.
        levels: horizontal lines: baselines, label entropy.
        least, most: smallest and largest range of the y axis.
        x_label: label of the x axis; "" if it shows sites.
        band: range of values too small to be of interest, which is shaded; None: none.
    """

    title: str
    y_label: str
    sites: tuple[str, ...]
    curves: tuple[Curve, ...]
    levels: tuple[Curve, ...]
    least: tuple[float, float]
    most: tuple[float, float]
    x_label: str = ""
    band: tuple[float, float] | None = None

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
        """Split a curve where a line between neighbours would join different streams, and return the parts."""
        pieces: list[list[Point]] = []
        for point in curve.points:
            joined = pieces and connected(self.sites[pieces[-1][-1].x], self.sites[point.x])
            if joined:
                pieces[-1].append(point)
            else:
                pieces.append([point])
        return pieces


def score_panels(task: TaskResults, *, best: bool = False) -> list[Panel]:
    """Return one panel per probe and control: task score, control score, selectivity, ceiling and baselines over
    sites; the probe that is best on dev first, and with `best` it alone beside its first control.
    """
    chosen = task.best()
    probes = sorted(task.probes, key=lambda probe: chosen is None or probe != chosen.probe)
    panels = [_score_panel(task, probe, control) for probe in probes for control in _controls_of(task, probe) or [None]]
    return panels[:1] if best else panels


def loss_panel(task: TaskResults) -> Panel | None:
    """Return a panel of the log loss of every probe over sites, in bits, with the baselines and the label entropy; None
    if it was not scored.
    """
    curves = [_curve(task, probe, probe, "task", _own("log_loss"), part) for part, probe in enumerate(task.probes)]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    entropy = task.any.facts.get("entropy_bits")
    levels = _baselines(task, "log_loss")
    if isinstance(entropy, float | int):
        levels.append(Curve("label entropy", "entropy", (Point(0, float(entropy)),)))
    return Panel(
        "Log loss over sites", "bits per label", task.sites, tuple(curves), tuple(levels), (0.0, 0.1), (0.0, 1e9)
    )


def site_ticks(sites: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return short names of sites, and the axis label; the names are numbers where nearly all sites are layers of one
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
    return tuple(names), f"site: {stream}.l, by l"


def _score_panel(task: TaskResults, probe: str, control: str | None) -> Panel:
    title = measure_title(task.primary)
    curves = [_curve(task, probe, title, "task", _own(task.primary))]
    if control is not None:
        curves += [
            _curve(task, probe, "control", "control", _against(task.primary, control, "score")),
            _curve(task, probe, "selectivity", "selectivity", _against(task.primary, control, "selectivity")),
            _ceiling(task, probe, control),
        ]
    curves = [curve for curve in curves if curve.points]
    levels = _baselines(task, task.primary)
    name = f"{probe}, control {control}" if control else probe
    return Panel(name, title, task.sites, tuple(curves), tuple(levels), (0.0, 1.0), (-0.5, 1.05))


def _controls_of(task: TaskResults, probe: str) -> list[str | None]:
    """Return the controls that this probe was compared with at some site."""
    own = [score(result, task.primary) for result in task.results if result.probe == probe]
    return [name for name in task.controls() if any(comparison(found, name) for found in own)]


def _own(measure: str) -> Callable[[ProbeResult], Score | None]:
    def find(result: ProbeResult) -> Score | None:
        found = score(result, measure)
        return found.score if found else None

    return find


def _against(
    measure: str, control: str, which: Literal["score", "selectivity"]
) -> Callable[[ProbeResult], Score | None]:
    def find(result: ProbeResult) -> Score | None:
        found = comparison(score(result, measure), control)
        return None if found is None else found.score if which == "score" else found.selectivity

    return find


def _curve(
    task: TaskResults, probe: str, name: str, role: Role, find: Callable[[ProbeResult], Score | None], part: int = 0
) -> Curve:
    sites = task.sites
    found = ((sites.index(result.site), find(result)) for result in task.results if result.probe == probe)
    return Curve(name, role, tuple(Point(x, s.value, s.low, s.high) for x, s in found if s is not None), part)


def _ceiling(task: TaskResults, probe: str, control: str) -> Curve:
    sites = task.sites
    points = []
    for result in task.results:
        found = comparison(score(result, task.primary), control)
        if result.probe == probe and found is not None and found.ceiling is not None:
            points.append(Point(sites.index(result.site), found.ceiling))
    return Curve("ceiling", "ceiling", tuple(points))


def _baselines(task: TaskResults, measure: str) -> list[Curve]:
    found = [(result.probe, score(result, measure)) for result in task.baselines]
    return [
        Curve(probe, "baseline", (Point(0, m.score.value, m.score.low, m.score.high),), part)
        for part, (probe, m) in enumerate((probe, m) for probe, m in found if m is not None)
    ]


_APART = 0.14  # of a step between sites, between lines of different positions
_FAR = (-1e12, 1e12)


@dataclass(frozen=True)
class Use:
    """Pairs the result of one property and behaviour with its verdicts, in the order of its cells."""

    result: UseResult
    verdicts: tuple[Verdict, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites of the result, in the order of depth."""
        return tuple(dict.fromkeys(cell.site for cell in self.result.cells))

    @property
    def positions(self) -> tuple[str, ...]:
        """Positions in the order of first occurrence; a single empty name where rows have one position."""
        return tuple(dict.fromkeys(cell.position for cell in self.result.cells))

    def at(self, position: str) -> list[tuple[int, UseCell, Verdict]]:
        """Return, for each place at one position, the ordinal of the site, the cell and the verdict."""
        both = zip(self.result.cells, self.verdicts, strict=True)
        return [(self.sites.index(cell.site), cell, v) for cell, v in both if cell.position == position]

    @property
    def words(self) -> tuple[Word, ...]:
        """The distinct verdict words that occur, such as `decodable and used …`, in the order in which `Word` lists
        them.
        """
        return tuple(word for word in Word if any(v.word is word for v in self.verdicts))

    @property
    def summary(self) -> str:
        """Summary such as `used (site) at resid.2; no material use at resid.0, resid.1`."""
        at = {word: [v.place for v in self.verdicts if v.word is word] for word in self.words}
        return "; ".join(f"{SHORT[word]} at {_some(places)}" for word, places in at.items())


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")


def uses(run: UseRun | None) -> list[Use]:
    """Return the results with their verdicts."""
    verdicts = iter(run.verdicts if run else ())
    return [Use(result, tuple(next(verdicts) for _ in result.cells)) for result in (run.results if run else ())]


def use_panels(use: Use, *, beside: bool = False) -> list[Panel]:
    """Return panels of decodability beside use: accuracy, mediated fraction where it is known, effects, and doses;
    `beside` the panels of probes, those of use alone, without doses.
    """
    panels = (
        (_mediated(use), _effects(use)) if beside else (_decodability(use), _mediated(use), _effects(use), _doses(use))
    )
    return [panel for panel in panels if panel is not None]


def _lines(
    use: Use,
    name: Callable[[str], str],
    role: Role,
    find: Callable[[UseCell, Verdict], Point | None],
    *,
    joined: float = 0.0,
) -> list[Curve]:
    """Return a curve for each position; `find` gives the point of a cell, whose x is set afterwards."""
    curves, middle = [], (len(use.positions) - 1) / 2
    for part, position in enumerate(use.positions):
        found = [(x, find(cell, verdict)) for x, cell, verdict in use.at(position)]
        points = tuple(Point(x, p.value, p.low, p.high, p.mark, p.note) for x, p in found if p is not None)
        shift = (part - middle) * _APART + joined if len(use.sites) > 1 else 0.0
        curves.append(Curve(name(position), role, points, part, bars=True, shift=shift))
    return [curve for curve in curves if curve.points]


def _named(what: str) -> Callable[[str], str]:
    return lambda position: position or what


def _decodability(use: Use) -> Panel | None:
    def find(cell: UseCell, verdict: Verdict) -> Point | None:
        gate = use.result.decodability.get(cell.place)
        return None if gate is None else Point(0, gate.accuracy, note="" if gate.passes else "not decodable")

    curves = _lines(use, _named("probes"), "task", find)
    name = "accuracy" if use.result.n_classes else "R²"
    panel = Panel("Decodable: what probes read", name, use.sites, tuple(curves), (), (0.0, 1.0), (-0.5, 1.05))
    return panel if curves else None


def _mediated(use: Use) -> Panel | None:
    """Return the panel of the swap's mediated fraction; the band of equivalence is ε in units of the natural contrast,
    at the median place.
    """

    def find(cell: UseCell, verdict: Verdict) -> Point | None:
        edit = cell.subspace
        return (
            None
            if edit.mediated_fraction is None
            else Point(
                0, edit.mediated_fraction, edit.mediated_fraction_low, edit.mediated_fraction_high, *_mark(verdict)
            )
        )

    curves = _lines(use, _named("swap"), "task", find)
    if not curves:
        return None
    shares = [
        use.result.epsilon * edit.spread / edit.total for edit in map(_swap, use.result.cells) if edit.mediated_fraction
    ]
    half = float(np.median(shares)) if shares else 0.0
    title, band = "Use: mediated fraction", (-half, half) if half else None
    return Panel(
        title, "share of the natural difference", use.sites, tuple(curves), (), (0.0, 1.0), (-0.5, 1.5), band=band
    )


def _swap(cell: UseCell) -> EditEffect:
    return cell.subspace


def _mark(verdict: Verdict) -> tuple[str, str]:
    return MARKS[verdict.word], SHORT[verdict.word]


def _effects(use: Use) -> Panel:
    """Return the panel of the effects of both edits, in SDs of the clean output, with the band of equivalence."""

    def swapped(cell: UseCell, verdict: Verdict) -> Point:
        edit = cell.subspace
        return Point(0, edit.effect_size, edit.effect_size_low, edit.effect_size_high, *_mark(verdict))

    def exchanged(cell: UseCell, verdict: Verdict) -> Point:
        return Point(0, cell.whole.effect_size, cell.whole.effect_size_low, cell.whole.effect_size_high)

    curves = [
        *_lines(use, _named("swap"), "task", swapped),
        *_lines(use, lambda p: f"{p} whole" if p else "whole state", "other", exchanged, joined=_APART / 2),
    ]
    band = (-use.result.epsilon, use.result.epsilon)
    least = (-2 * use.result.epsilon, 2 * use.result.epsilon)
    return Panel(
        "Use: effect of the edits", "SD of the clean output", use.sites, tuple(curves), (), least, _FAR, band=band
    )


def _doses(use: Use) -> Panel | None:
    """Return the panel of τ by dose, at each position's site of the largest effect."""
    largest = [max(use.at(p), key=lambda found: abs(found[1].subspace.effect_size)) for p in use.positions]
    cells = [(part, cell, verdict) for part, (_, cell, verdict) in enumerate(largest) if cell.dose_curve]
    if not cells:
        return None
    doses = sorted({dose for _, cell, _ in cells for dose, _ in cell.dose_curve} | {0.0})
    curves = tuple(Curve(cell.place, "task", _by_dose(cell, verdict, doses), part) for part, cell, verdict in cells)
    band = (-use.result.epsilon, use.result.epsilon)
    least = (-2 * use.result.epsilon, 2 * use.result.epsilon)
    return Panel(
        "Dose of the swap",
        "SD of the clean output",
        tuple(f"{dose:g}" for dose in doses),
        curves,
        (),
        least,
        _FAR,
        "dose (1: the whole difference of class means)",
        band,
    )


def _by_dose(cell: UseCell, verdict: Verdict, doses: Sequence[float]) -> tuple[Point, ...]:
    """Return the points of a dose curve, from no edit on; the primary dose has the verdict's mark."""
    points = [Point(0, 0.0)]
    for dose, effect in cell.dose_curve:
        mark, note = _mark(verdict) if dose == cell.dose else ("", "")
        points.append(Point(doses.index(dose), effect, mark=mark, note=note and f"primary dose, {note}"))
    return tuple(points)


_AXES = {"rows": "training rows seen", "k": "coordinates", "coordinates": "coordinates"}


def analysis_panels(task: TaskResults, results: Sequence[AnalysisResult]) -> list[Panel]:
    """Return the panels of one analysis of one probe.

    Quantities that have one value a site are drawn over sites; those that are measured along something (a rank, the
    rows seen) are drawn along it at the site that is best on dev.
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
        points = tuple(Point(x, p.value, p.low, p.high) for x, p in sorted(means, key=lambda m: m[0]) if p is not None)
        curves.append(Curve(control or "task", _role(quantity, control), points, part))
    unit = next(p.unit for r in results for p in r.of(quantity, control=None))
    return Panel(
        quantity_title(quantity), _axis(quantity, unit), sites, tuple(curves), (), (0.0, _least(unit)), (-1e12, 1e12)
    )


def _along(result: AnalysisResult, quantities: Sequence[str], x_name: str) -> Panel:
    points = [p for p in result.points if p.x is not None and p.x_name == x_name]
    values = sorted({p.x for p in points if p.x is not None})
    curves = []
    for part, name in enumerate(quantities):
        for control in dict.fromkeys(p.control for p in points if p.quantity == name):
            chosen = [p for p in points if (p.quantity, p.control) == (name, control)]
            means = [(i, mean([p for p in chosen if p.x == x])) for i, x in enumerate(values)]
            drawn = tuple(Point(i, p.value, p.low, p.high) for i, p in means if p is not None)
            of_control = control and name != "selectivity"
            curves.append(Curve(control if of_control else quantity_title(name), _role(name, control), drawn, part))
    unit = points[0].unit
    title = f"{', '.join(map(quantity_title, quantities))} at {result.site}"
    return Panel(
        title,
        _axis(quantities[0], unit),
        tuple(f"{x:g}" for x in values),
        tuple(curves),
        (),
        (0.0, _least(unit)),
        (-1e12, 1e12),
        _AXES.get(x_name, x_name),
    )


def _role(quantity: str, control: str) -> Role:
    return "selectivity" if quantity == "selectivity" else "control" if control else "task"


def mean(points: Sequence[Number]) -> Number | None:
    """Return the mean over draws that stands among the points, else compute it; None where there is none."""
    told = [p for p in points if p.draw < 0]
    if told or not points:
        return told[0] if told else None
    return Number(points[0].quantity, float(np.mean([p.value for p in points])), points[0].unit)


def _axis(quantity: str, unit: str) -> str:
    return unit if unit != "fraction" else quantity_title(quantity)


def _least(unit: str) -> float:
    return 1.0 if unit in ("fraction", "R²") else 0.1
