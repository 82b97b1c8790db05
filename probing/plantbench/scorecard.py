"""Runs rules on the cells of a suite (a set of cases with known truth) and returns a Scorecard: how often each rule is
right, wrong or gives no answer, as JSON and tables.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from probing.errors import BadParameter
from probing.files.whole_files import write_atomically
from probing.plantbench.baselines import FIELD_RULES, RULES, field_rules
from probing.plantbench.case import Case, Truth
from probing.plantbench.knobs import CI_SEEDS, DEVELOPMENT_SEEDS, HELD_OUT_DRAWS, VERSION
from probing.plantbench.left_out import left_out, left_out_by_case, left_out_table
from probing.plantbench.scoring import SWEEPS, Curve, Rates, Rule, Scored, answers, power_curve, power_table, rates
from probing.plantbench.suite import Suite, development, held_out_suite
from probing.system.screen import console
from probing.use.nulls import rate_interval

if TYPE_CHECKING:
    from probing.plantbench.circuit_scores import CircuitScore

COLUMNS = (
    "precision_used",
    "recall_used",
    "precision_unused",
    "recall_unused",
    "abstention",
    "fpr",
    "fpr_low",
    "fpr_high",
    "false_unused",
    "material_rate",
    "joint_recall",
    "mf_slope",
    "seconds",
)


@dataclass(frozen=True)
class Scorecard:
    """Holds the answers of several rules on the same cells (a property at a place of a case), from which the rates of
    right and wrong answers are computed.

    Attributes:
        scored: by name of the rule, its answer and the truth for each cell; some rules are asked about a part of the
            suite only.
        power: for each knob (a setting of the generator) that was varied, by its value and by name of the rule, the
            rates.
        circuits: how circuits agree with the truth about the edges of compiled models.
    """

    scored: Mapping[str, Sequence[Scored]]
    power: Mapping[str, Curve] = field(default_factory=dict)
    circuits: Sequence[CircuitScore] = ()

    def rates(self) -> dict[str, Rates]:
        """Return, by name of the rule, how often it is right and wrong over all cells (`Rates`)."""
        return {name: rates(cells) for name, cells in self.scored.items()}

    def by(self, part: Callable[[Scored], str]) -> dict[str, dict[str, Rates]]:
        """Return the rates (`Rates`) by name of a part of the suite and, within it, by name of the rule; `part` is a
        function that returns the name of the part that a scored cell belongs to.
        """
        found: dict[str, dict[str, list[Scored]]] = {}
        for name, cells in self.scored.items():
            for s in cells:
                found.setdefault(part(s), {}).setdefault(name, []).append(s)
        return {one: {name: rates(cells) for name, cells in row.items()} for one, row in found.items()}

    def to_json(self) -> str:
        """Return a JSON object with these keys: `generator`, the version of the generator of cases; `rules`, `by_tier`,
        `by_case` and `by_sub_label`, the rates over all cells and over these parts (cells without a sub-label by their
        label); `left_out`, by rule, the numbers of cells of tier 3 that are not scored, by reason, in all and by
        program; `power`, the rates by value of each knob; `circuits`, the counts of circuits by model; and `cells`, all
        answers.
        """
        card = {
            "generator": VERSION,
            "rules": _plain(self.rates()),
            "by_tier": _plain(self.by(lambda s: str(s.tier))),
            "by_case": _plain(self.by(_case_name)),
            "left_out": {name: self._left_out(name) for name in self.scored},
            "by_sub_label": _plain(self.by(lambda s: s.truth.certificate.sub_label or s.label)),
            "power": {
                knob: [{"value": value, "rules": _plain(row)} for value, row in curve.items()]
                for knob, curve in self.power.items()
            },
            "circuits": [asdict(one) for one in self.circuits],
            "cells": self._cells(),
        }
        return json.dumps(card, indent=1, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the JSON to a file, whole or not at all."""
        write_atomically(path, self.to_json().encode())

    def table(self, part: Callable[[Scored], str] | None = None) -> str:
        """Return the rates as a text table with one line per rule; with `part` (see `by`), a table for each part."""
        if part is None:
            return _table(self.rates())
        return "\n\n".join(f"{name}\n{_table(found)}" for name, found in self.by(part).items())

    def case_tables(self, tier: int | None = None) -> str:
        """Return, for each rule, a text table with one line per case: the shares of its answers "used" that are right,
        of used cells that it calls used, of clearly used cells that it calls unused, and of unused cells that it calls
        used, with intervals; how often it abstains; and its answers on cells in the band. With `tier`, only cases of
        that tier are listed.
        """
        found = self.by(_case_name)
        found = {case: row for case, row in found.items() if tier is None or case.startswith(f"{tier}.")}
        return "\n\n".join(
            _case_table(name, {case: row[name] for case, row in found.items() if name in row}) for name in self.scored
        )

    def left_out_tables(self) -> str:
        """Return, for each rule, a text table of its answers on the cells of tier 3 that are not scored, with a line
        for each program and columns by reason; below it, the rates without these cells, and those if `collinear` cells
        (see `CellTruth`) counted as unused.
        """
        found = ((name, [s for s in cells if s.tier == 3]) for name, cells in self.scored.items())
        return "\n\n".join(left_out_table(name, cells) for name, cells in found if cells)

    def power_tables(self) -> str:
        """Return a text table for each knob (a setting of the generator) at whose values the power of rules was
        measured.
        """
        return "\n\n".join(power_table(knob, curve) for knob, curve in self.power.items())

    def circuit_table(self) -> str:
        """Return a text table of circuits, a line for each model, and rates over all of them with intervals."""
        table: str = import_module("probing.plantbench.circuit_scores").table(self.circuits)
        return table

    def plot(self) -> Any:
        """Return an Altair chart of the rates at which each rule errs (*used* where the truth is unused, and the
        reverse) and abstains, and of the power of the rules by the value of each knob (a setting that makes the planted
        cases harder) for which it was measured.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.

        Raises:
            BadParameter: no rule was scored, and no power was measured.
        """
        return import_module("probing.reporting.plots").plot_scorecard(self)

    def _left_out(self, rule: str) -> dict[str, Any]:
        cells = [s for s in self.scored[rule] if s.tier == 3]
        by_case = {name: asdict(found) for name, found in left_out_by_case(cells).items()}
        return asdict(left_out(cells)) | {"by_case": by_case}

    def _cells(self) -> list[dict[str, Any]]:
        rows: dict[tuple[str, str], dict[str, Scored]] = {}
        for name, cells in self.scored.items():
            for s in cells:
                rows.setdefault((s.case, s.cell), {})[name] = s
        return [_cell_facts(row) for row in rows.values()]


def _case_name(s: Scored) -> str:
    return f"{s.tier}.{s.number:02d} {s.name}"


def _cell_facts(row: Mapping[str, Scored]) -> dict[str, Any]:
    one = next(iter(row.values()))
    certificate = asdict(one.truth.certificate)
    together = None if one.joint is None else {"label": one.joint.label, "s": one.joint.s, "e": one.joint.e}
    return {
        "case": one.case,
        "name": one.name,
        "cell": one.cell,
        "intended": one.truth.intended,
        **certificate,
        "probe_accuracy": one.truth.probe_accuracy,
        "decodable": one.truth.decodable,
        "left_out": one.truth.left_out,
        "together": together,
        "answers": {
            name: {k: _finite(v) for k, v in asdict(s.answer).items()} | ({"refusal": s.refusal} if s.refusal else {})
            for name, s in row.items()
        },
    }


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(r) if isinstance(r, Rates) else _plain(r) for name, r in found.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(found: Mapping[str, Rates]) -> str:
    width = max([len("rule"), *(len(name) for name in found)])
    lines = [f"{'rule':{width}}  " + "  ".join(f"{c.replace('_', ' '):>16}" for c in COLUMNS)]
    for name, r in found.items():
        values = [getattr(r, column) for column in COLUMNS]
        lines.append(f"{name:{width}}  " + "  ".join(f"{'–' if v is None else format(v, '.3f'):>16}" for v in values))
    return "\n".join(lines)


def _case_table(rule: str, found: Mapping[str, Rates]) -> str:
    width = max([len("case"), *(len(case) for case in found)])
    heads = (
        "right where it says used",
        "used called used",
        "used called unused, S ≥ 1.25 ε",
        "unused called used",
        "abstained",
        "in the band: used, unused, of",
    )
    lines = [f"{rule}, by case, with 95 % Clopper-Pearson intervals"]
    lines.append(f"{'case':{width}}  " + "  ".join(f"{head:>30}" for head in heads))
    for case, r in found.items():
        hits = round((r.recall_used or 0.0) * r.used)
        cells = (
            _rate(hits, hits + r.false_used),
            _rate(hits, r.used),
            _count(r.material_unused, r.material, r.material_low, r.material_high),
            _count(r.false_used, r.unused, r.fpr_low, r.fpr_high),
            "–" if r.abstention is None else f"{r.abstention:.2f} of {r.cells}",
            f"{r.band_used}, {r.band_unused}, {r.band}" if r.band else "–",
        )
        lines.append(f"{case:{width}}  " + "  ".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def _rate(part: int, whole: int) -> str:
    return _count(part, whole, *rate_interval(part, whole))


def _count(part: int, whole: int, low: float, high: float) -> str:
    return f"{part} of {whole} [{low:.3f}, {high:.3f}]" if whole else "–"


def rules_of(names: Sequence[str], tiers: Sequence[int]) -> dict[str, Rule]:
    """Return rules by name. Among `names` may be `protocol`, its variants such as `protocol_without_strata`, and
    `field`, which stands for all rules of the literature; their thresholds are fitted on two development seeds, on tier
    0. `tiers` are the tiers that they will be asked about.

    Raises:
        BadParameter: one of the names is unknown.
    """
    found: dict[str, Rule] = {}
    for name in names:
        if name == "field":
            seeds = DEVELOPMENT_SEEDS[-2:]
            found |= field_rules(development(seeds=seeds, tiers=[tier for tier in tiers if tier == 0] or [0]))
        elif name in RULES:
            found[name] = RULES[name]
        else:
            raise BadParameter("no such rule", needed=f"{', '.join(RULES)} or field", found=repr(name))
    return found


def run(
    *,
    tiers: Sequence[int],
    heldout: str = "",
    seeds: int | None = None,
    first_seed: int = 0,
    programs: Sequence[str] = (),
    rules: Sequence[str] = ("protocol", "field"),
    more: Mapping[str, Rule] | None = None,
    power: Sequence[str] = (),
    circuits: bool = False,
    progress: bool | None = None,
) -> Scorecard:
    """Ask rules about all cells of a suite, score their answers, and return the scorecard.

    The rules of the literature compare each erasure with 60 random ones, which in transformers takes about ten times as
    long as the protocol. Therefore, if tier 0 is among the tiers, they are asked about tier 0 only.

    Args:
        tiers: tiers to run: 0 for random vectors, 1 for constructed and 2 for trained transformers, 3 for compiled
            programs.
        heldout: version whose held-out configuration is run; "" means the development seeds.
        seeds: number of seeds (in the held-out configuration: of draws of tier 0), 1 to 20; None means 3 for
            development, 10 for the held-out configuration.
        first_seed: first of the development seeds.
        programs: names of the programs of tier 3, for development; none: all.
        rules: names of rules: `protocol`, its variants, and `field` for all rules of the literature (see `rules_of`).
        more: further rules of your own, by name.
        power: names of knobs (settings of the generator) of tier 0, at several values of which rates are measured, too;
            `scoring.SWEEPS` lists them.
        circuits: whether to score circuits on the edges of the programs of tier 3, too.
        progress: whether to show on standard error what is running; None shows it in a terminal only.

    Raises:
        BadParameter: there is no such tier, rule, number of seeds or knob.
        UnknownName: there is no such program.
    """
    unknown = [knob for knob in power if knob not in SWEEPS]
    if unknown:
        raise BadParameter("no such knob", needed=", ".join(SWEEPS), found=", ".join(unknown))
    if seeds is None:
        seeds = HELD_OUT_DRAWS if heldout else len(CI_SEEDS)
    chosen_seeds = DEVELOPMENT_SEEDS[first_seed : first_seed + seeds]
    if seeds < 1 or first_seed < 0 or len(chosen_seeds) < seeds or not tiers:
        raise BadParameter(
            "no such suite",
            needed=f"one tier or more, seeds within 0 to {DEVELOPMENT_SEEDS[-1]}",
            found=f"{seeds} seeds from {first_seed}, tiers {list(tiers)}",
        )
    suite = (
        held_out_suite(heldout, tiers=tiers, draws=seeds)
        if heldout
        else development(seeds=chosen_seeds, tiers=tiers, programs=programs)
    )
    chosen = rules_of(rules, tiers) | dict(more or {})
    with _told(progress) as tell:
        scored = answers(chosen, _telling(suite, tell), tiers=_asked(chosen, rules, tiers))
        powers = {knob: _power(knob, chosen, chosen_seeds, tell) for knob in power}
        known = _circuits(chosen_seeds[0], programs, tell) if circuits and 3 in tiers else ()
        return Scorecard(scored, powers, known)


def _asked(chosen: Mapping[str, Rule], rules: Sequence[str], tiers: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the tiers of those rules that are not asked about all tiers."""
    if "field" not in rules or 0 not in tiers:
        return {}
    return {name: (0,) for name in chosen if name in FIELD_RULES}


def _telling(suite: Suite, tell: Callable[[str], None]) -> Iterator[tuple[Case, Truth]]:
    for number, (case, truth) in enumerate(suite, start=1):
        tell(f"case {number}: tier {case.tier}, {case.name} ({case.twin or case.read or 'trained'})")
        yield case, truth


def _circuits(seed: int, programs: Sequence[str], tell: Callable[[str], None]) -> list[CircuitScore]:
    """Score circuits on some programs of tier 3, or on all."""
    home = import_module("probing.plantbench.circuit_scores")
    found: list[CircuitScore] = []
    for known in home.tier3(seed, names=programs):
        tell(f"circuit {len(found) + 1}: {known.name}")
        found.append(home.scored(known))
    return found


def _power(knob: str, rules: Mapping[str, Rule], seeds: Sequence[int], tell: Callable[[str], None]) -> Curve:
    tell(f"power against {knob}")
    return power_curve(rules, knob, seeds=seeds)


@contextmanager
def _told(show: bool | None) -> Iterator[Callable[[str], None]]:
    is_shown = sys.stderr.isatty() if show is None else show
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console(err=True), disable=not is_shown) as bar:
        task = bar.add_task("plantbench")

        def tell(what: str) -> None:
            bar.update(task, description=what)

        yield tell
