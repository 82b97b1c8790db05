"""Curves over sites: what the figures of the page and of the paper both draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from probing.reporting.task_results import TaskResults, comparison, connected, score, split_site
from probing.reporting.wording import measure_title
from probing.results.probe import ProbeResult, Score

Role = Literal["task", "other", "control", "selectivity", "ceiling", "baseline", "entropy"]


@dataclass(frozen=True)
class Point:
    """A score at the site with ordinal `x`; `low` and `high` are None where it has no interval.

    `mark` is the shape drawn ("": that of the curve's role), `note` what its hint adds.
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

    `part` counts curves of the same role; `bars` draws each interval by itself, `shift` steps (of a site) to the right,
    so that those of several curves can be distinguished.
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
        least, most: the range that the y axis shows at least, and the one it is never wider than.
        x_label: of the x axis; "" where it is sites.
        band: values between which nothing is of interest, shaded; None: no such.
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
        """Return the short names along the x axis, and its label."""
        return (self.sites, self.x_label) if self.x_label else site_ticks(self.sites)

    def y_range(self) -> tuple[float, float]:
        """Return the lowest and highest value on the y axis: all values in view, within `most`."""
        drawn = [p for curve in (*self.curves, *self.levels) for p in curve.points]
        values = [v for p in drawn for v in (p.value, p.low, p.high) if v is not None]
        values += self.band or ()
        low, high = min([self.least[0], *values]), max([self.least[1], *values])
        return max(low, self.most[0]), min(high, self.most[1])

    def runs(self, curve: Curve) -> list[list[Point]]:
        """Return the curve, cut where a line between neighbours would join different streams."""
        pieces: list[list[Point]] = []
        for point in curve.points:
            joined = pieces and connected(self.sites[pieces[-1][-1].x], self.sites[point.x])
            if joined:
                pieces[-1].append(point)
            else:
                pieces.append([point])
        return pieces


def score_panels(task: TaskResults) -> list[Panel]:
    """Return one panel per probe and control: task score, control score, selectivity, ceiling and baselines over
    sites.
    """
    return [
        _score_panel(task, probe, control) for probe in task.probes for control in _controls_of(task, probe) or [None]
    ]


def loss_panel(task: TaskResults) -> Panel | None:
    """Return a panel of the log loss in bits of every probe over sites, beside the baselines and the label entropy;
    None where not scored.
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
    """Return short names of sites and the axis label: numbers where nearly all sites are layers of one stream."""
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
