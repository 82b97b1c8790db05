"""Scorecard: the rates of several rules on the same cells, as JSON and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from probing.files.whole_files import write_atomically
from probing.plantbench.knobs import VERSION
from probing.plantbench.power import Curve, power_table
from probing.plantbench.scoring import Rates, Scored, rates

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
    """Every rule's answers on the same cells.

    Attributes:
        scored: cells by rule; a rule need not have been asked about all.
        power: by knob, rates by its value and by rule.
    """

    scored: Mapping[str, Sequence[Scored]]
    power: Mapping[str, Curve] = field(default_factory=dict)

    def rates(self) -> dict[str, Rates]:
        """Return the rates over all cells, by rule."""
        return {name: rates(cells) for name, cells in self.scored.items()}

    def by(self, part: Callable[[Scored], str]) -> dict[str, dict[str, Rates]]:
        """Return rates by part of the suite, then by rule that was asked about it."""
        found: dict[str, dict[str, list[Scored]]] = {}
        for name, cells in self.scored.items():
            for s in cells:
                found.setdefault(part(s), {}).setdefault(name, []).append(s)
        return {one: {name: rates(cells) for name, cells in row.items()} for one, row in found.items()}

    def to_json(self) -> str:
        """Return JSON of `rules`, `by_tier`, `by_case`, `by_sub_label` (of used cells), `power`, and `cells` with all
        answers.
        """
        card = {
            "generator": VERSION,
            "rules": _plain(self.rates()),
            "by_tier": _plain(self.by(lambda s: str(s.tier))),
            "by_case": _plain(self.by(_case_name)),
            "by_sub_label": _plain(self.by(lambda s: s.truth.certificate.sub_label or s.label)),
            "power": {
                knob: [{"value": value, "rules": _plain(row)} for value, row in curve.items()]
                for knob, curve in self.power.items()
            },
            "cells": self._cells(),
        }
        return json.dumps(card, indent=1, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Write `scorecard.json`, whole or not at all."""
        write_atomically(path, self.to_json().encode())

    def table(self, part: Callable[[Scored], str] | None = None) -> str:
        """Return a table with a line a rule; with `part`, a block for each part."""
        if part is None:
            return _table(self.rates())
        return "\n\n".join(f"{name}\n{_table(found)}" for name, found in self.by(part).items())

    def case_tables(self) -> str:
        """Return a block for each rule with a line for each case: errors of either kind with their intervals, and
        silence.
        """
        found = self.by(_case_name)
        return "\n\n".join(
            _case_table(name, {case: row[name] for case, row in found.items() if name in row}) for name in self.scored
        )

    def power_tables(self) -> str:
        """Return a table for each knob whose power was measured."""
        return "\n\n".join(power_table(knob, curve) for knob, curve in self.power.items())

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
    heads = ("used called unused, S ≥ 1.25 ε", "unused called used", "abstained", "in the band: used, unused, of")
    lines = [f"{rule}, by case, with 95 % Clopper-Pearson intervals"]
    lines.append(f"{'case':{width}}  " + "  ".join(f"{head:>30}" for head in heads))
    for case, r in found.items():
        cells = (
            _count(r.material_unused, r.material, r.material_low, r.material_high),
            _count(r.false_used, r.unused, r.fpr_low, r.fpr_high),
            "–" if r.abstention is None else f"{r.abstention:.2f} of {r.cells}",
            f"{r.band_used}, {r.band_unused}, {r.band}" if r.band else "–",
        )
        lines.append(f"{case:{width}}  " + "  ".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def _count(part: int, whole: int, low: float, high: float) -> str:
    return f"{part} of {whole} [{low:.3f}, {high:.3f}]" if whole else "–"
