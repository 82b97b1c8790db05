"""Makes the panels of a use run over sites: effects of edits beside scores of probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from probing.reporting.latent_words import edit_title
from probing.reporting.panels import SHARES, Curve, Panel, Point, Role
from probing.reporting.use_words import MARKS, SHORT, effect, mediated
from probing.reporting.wording import Estimate, plural
from probing.results.models import ModelFacts
from probing.results.use import UseCell, UseResult
from probing.verdicts.verdict import UseRun, Verdict, Word

_APART = 0.14  # of a step between sites, between lines of different positions


@dataclass(frozen=True)
class Use:
    """Pairs the result of edits of one property, for one behaviour, with its verdicts in the order of
    `result.cells`; `apart` says in what it differs from other results of the same property, behaviour and model.
    """

    result: UseResult
    verdicts: tuple[Verdict, ...]
    apart: str = ""

    @property
    def model(self) -> ModelFacts:
        """Recorded facts (name, size, training step) of the model that was edited."""
        return ModelFacts.of(self.result.model, self.result.settings.get("model_facts"))

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites of the result, in the order of first occurrence."""
        return tuple(dict.fromkeys(cell.site for cell in self.result.cells))

    @property
    def positions(self) -> tuple[str, ...]:
        """Positions in the order of first occurrence; a single empty name where rows have one position."""
        return tuple(dict.fromkeys(cell.position for cell in self.result.cells))

    def at(self, position: str) -> list[tuple[int, UseCell, Verdict]]:
        """Return, for each place at one position, the ordinal of the site, the cell and the verdict."""
        both = zip(self.result.cells, self.verdicts, strict=True)
        return [(self.sites.index(cell.site), cell, v) for cell, v in both if cell.position == position]

    def only(self, positions: Sequence[str]) -> Use:
        """Return the results and verdicts at the given positions only."""
        kept = [i for i, cell in enumerate(self.result.cells) if cell.position in positions]
        cells = tuple(self.result.cells[i] for i in kept)
        return Use(replace(self.result, cells=cells), tuple(self.verdicts[i] for i in kept), self.apart)


def uses(run: UseRun | None) -> list[Use]:
    """Return the results of a run in which something was edited, each with its verdicts; empty for None."""
    if run is None:
        return []
    verdicts = iter(run.verdicts)
    own = {id(one): tuple(islice(verdicts, len(one.cells or one.decodability))) for one in run.results}
    return [Use(one, own[id(one)], _apart(one, run.results)) for one in run.results if not one.unmatched]


def unmatched(run: UseRun | None) -> list[tuple[str, str]]:
    """Return, for each property whose rows could not be matched, its name (and whose it is), and why nothing was
    edited; empty for None.
    """
    results = [] if run is None else run.results
    return [(f"{one.task} of {one.model}", one.unmatched) for one in results if one.unmatched]


def _apart(result: UseResult, every: Sequence[UseResult]) -> str:
    """Return in what a result differs from others of the same property, behaviour and model; "" if there are none."""
    alike = [one for one in every if _subject(one) == _subject(result)]
    facts = [_facts(one) for one in alike]
    own = _facts(result)
    differing = [name for name in own if any(other.get(name) != own[name] for other in facts)]
    return "; ".join(own[name] for name in differing)


def _subject(result: UseResult) -> tuple[str, str, str]:
    return result.task, result.behaviour, result.model


def _facts(result: UseResult) -> dict[str, str]:
    """Return the settings of a result in words, by name: rows, places, other edits, and then all others."""
    given = result.settings.get("comparisons") or ()
    beside = [edit_title(name) for name in given if not name.startswith("random_subspace")]
    facts = {
        "rows": plural(result.n_rows, "row"),
        "places": f"at {', '.join(cell.place for cell in result.cells)}",
        "comparisons": f"beside {', '.join(beside)}" if beside else "no other edits",
    }
    others = {name: f"{name} {value}" for name, value in result.settings.items() if name not in _NO_SETTINGS}
    return others | facts


_NO_SETTINGS = ("comparisons", "unit", "model_facts", "criteria")  # of these, the first is told in other words


def use_panels(use: Use, *, beside: bool = False) -> list[Panel]:
    """Return panels over sites of accuracy, mediated fraction (if known) and effects, and a panel of doses; with
    `beside`, for use next to panels of probes, only mediated fraction and effects.
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


def _point(found: Estimate | None, verdict: Verdict | None = None) -> Point | None:
    """Return the point of a number, with the mark of a verdict; its x is set afterwards."""
    if found is None:
        return None
    return Point(0, found.value, found.low, found.high, *(_mark(verdict) if verdict else ()))


def _mark(verdict: Verdict) -> tuple[str, str]:
    return MARKS[verdict.word], SHORT[verdict.word]


def _decodability(use: Use) -> Panel | None:
    def find(cell: UseCell, verdict: Verdict) -> Point | None:
        gate = use.result.decodability.get(cell.place)
        return None if gate is None else Point(0, gate.accuracy, note="" if gate.passes else SHORT[Word.NOT_DECODABLE])

    curves = _lines(use, _named("probes"), "task", find)
    name = "accuracy" if use.result.n_classes else "R²"
    return Panel("What probes recover", name, use.sites, tuple(curves), most=SHARES) if curves else None


def _mediated(use: Use) -> Panel | None:
    """Return the panel of the swap's mediated fraction; the band of equivalence is ε in units of the natural contrast,
    at the median place.
    """
    curves = _lines(use, _named("swap"), "task", lambda cell, verdict: _point(mediated(cell.subspace), verdict))
    if not curves:
        return None
    swaps = [cell.subspace for cell in use.result.cells]
    shares = [use.result.epsilon * edit.spread / edit.total for edit in swaps if edit.mediated_fraction]
    half = float(np.median(shares)) if shares else 0.0
    title, y_label = "Use: mediated fraction", "share of the natural difference"
    return Panel(title, y_label, use.sites, tuple(curves), most=(-0.5, 1.5), band=(-half, half) if half else None)


def _effects(use: Use) -> Panel:
    """Return the panel of the effects of both edits, in SDs of the clean output, with the band of equivalence."""
    curves = [
        *_lines(use, _named("swap"), "task", lambda cell, verdict: _point(effect(cell.subspace), verdict)),
        *_lines(
            use,
            lambda position: f"{position} whole" if position else "whole state",
            "other",
            lambda cell, verdict: _point(effect(cell.whole)),
            joined=_APART / 2,
        ),
    ]
    return _in_sd(use, "Use: effect of the edits", use.sites, curves)


def _in_sd(use: Use, title: str, names: tuple[str, ...], curves: Sequence[Curve], x_label: str = "") -> Panel:
    """Return a panel of effects in SDs of the clean output, with the band of equivalence."""
    e, label = use.result.epsilon, "SD of the clean output"
    return Panel(title, label, names, tuple(curves), least=(-2 * e, 2 * e), band=(-e, e), x_label=x_label)


def _doses(use: Use) -> Panel | None:
    """Return the panel of τ by dose, at each position's site of the largest effect."""
    largest = [max(use.at(p), key=lambda found: abs(found[1].subspace.effect_size)) for p in use.positions]
    cells = [(part, cell, verdict) for part, (_, cell, verdict) in enumerate(largest) if cell.dose_curve]
    if not cells:
        return None
    doses = sorted({dose for _, cell, _ in cells for dose, _ in cell.dose_curve} | {0.0})
    curves = [Curve(cell.place, "task", _by_dose(cell, verdict, doses), part) for part, cell, verdict in cells]
    names = tuple(f"{dose:g}" for dose in doses)
    return _in_sd(use, "Dose of the swap", names, curves, "dose (1: the whole difference of class means)")


def _by_dose(cell: UseCell, verdict: Verdict, doses: Sequence[float]) -> tuple[Point, ...]:
    """Return the points of a dose curve, from no edit on; the primary dose has the verdict's mark."""
    points = [Point(0, 0.0)]
    for dose, found in cell.dose_curve:
        mark, note = _mark(verdict) if dose == cell.dose else ("", "")
        points.append(Point(doses.index(dose), found, mark=mark, note=note and f"primary dose, {note}"))
    return tuple(points)
