"""EditEffect, UseCell, UseResult: effects of edits at places on a behaviour, as numbers. No word of use or non-use."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter

from probing.errors import InputError, OldAttributes
from probing.files.fact_shapes import check_settings
from probing.files.strict_json import strict_json
from probing.files.whole_files import write_atomically
from probing.results.probe import read_lines

Answers = tuple[tuple[tuple[int, str], ...], ...]
"""For each answer the pieces that count as it: vocabulary id, and text with its spaces."""


def visible(text: str) -> str:
    """Return a text in which all white space and control characters are visible: `␣is` for ` is`."""
    shown = (_SEEN.get(c) or (c if c.isprintable() else ascii(c)[1:-1]) for c in text)
    return "".join(shown)


def answers_said(answers: Answers, *, ids: bool = False, most: int = 12) -> str:
    """Return the answers as `␣was/␣is | ␣were/␣are`, and with `ids` as `␣is (314) | ␣are (359)`; empty where there are
    none.
    """
    said = ["/".join(visible(t) + (f" ({piece})" if ids else "") for piece, t in pieces) for pieces in answers[:most]]
    return " | ".join([*said, *(["…"] if len(answers) > most else [])])


_SEEN = {" ": "\N{OPEN BOX}", "\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


_STORED = {  # in files, which are read by every version: the name of 0.1 of each attribute that has another now
    "effect_size": "es",
    **{f"effect_size_{bound}": f"es_{bound}" for bound in ("low", "high", "low90", "high90")},
    **{f"mediated_fraction{bound}": f"mf{bound}" for bound in ("", "_low", "_high")},
    "whole_effect_size": "es_u",
    "whole_effect_p": "u_p",
    "whole_effect_p_adjusted": "u_p_adjusted",
    "smallest_detectable_effect": "mde",
}
_READ = {old: new for new, old in _STORED.items()} | {"es_u_high": "off_high"}  # the latter from before 0.2


@dataclass(frozen=True)
class EditEffect(OldAttributes):
    """The measured effect of one kind of edit at one place.

    Effects are in SDs of the clean output: what lies along the natural contrast in SDs along it (ES), what lies off it,
    or differs between strata and pairs of values, in SDs of the whole output; the whole effect is the root of the sum
    of both squares. What the noise of the fitted contrast hides of ES is made up for.

    Attributes:
        tau, tau_error: τ and its standard error, in the behaviour's unit.
        effect_size, effect_size_low, effect_size_high: ES and its 95 % interval, from the same error as p.
        effect_size_low90, effect_size_high90: its 90 % interval, for equivalence.
        p: two-sided, of τ. p_adjusted: max-T over edits, statistics and places of the property.
        total, total_low, total_high: T, the natural contrast, and its 95 % interval.
        mediated_fraction, mediated_fraction_low, mediated_fraction_high: τ / T and its 95 % interval; None: T is not
            established.
        whole_effect_size: the whole effect.
        off_high: one-sided 95 % upper bound of what the true contrast may have of the effect off the fitted one, in SDs
            along it, for equivalence; of outputs of one dimension the bound of |ES|.
        whole_effect_p, whole_effect_p_adjusted: one-sided, of U; adjusted as p.
        smallest_detectable_effect: smallest |ES| that is detected with 80 % probability at 5 %.
        equivalence_p: p of tests that |ES|, the whole effect and what the contrast may hide are below ε, the largest.
        null_ratio: SD of τ under shuffled labels over its standard error, at the place of the largest effect.
        rows: rows edited.
        deals: ES where the groups outside the measured fold were dealt out otherwise between what fits the shift and
            what fits the contrast.
        alike: of an interchange: ES of states of the same value, which has been taken off; None: of other edits, and
            between twins.
    """

    _before: ClassVar[Mapping[str, str]] = {old: new for new, old in _STORED.items()}

    tau: float
    tau_error: float
    effect_size: float
    effect_size_low: float
    effect_size_high: float
    effect_size_low90: float
    effect_size_high90: float
    p: float
    p_adjusted: float
    total: float
    total_low: float
    total_high: float
    spread: float
    mediated_fraction: float | None
    mediated_fraction_low: float | None
    mediated_fraction_high: float | None
    whole_effect_size: float
    off_high: float
    whole_effect_p: float
    whole_effect_p_adjusted: float
    smallest_detectable_effect: float
    equivalence_p: float
    null_ratio: float | None
    rows: int
    deals: tuple[float, ...] = ()
    alike: float | None = None


@dataclass(frozen=True)
class UseCell:
    """The measurements of one property at one place.

    Attributes:
        site, position: of the edit.
        subspace, whole: class-mean swap; interchange of whole states.
        dose: of the swap; chosen on states, never on outputs.
        dose_curve: (dose, τ of the swap in SDs), rising.
        completeness, selectivity, reliability: of the swap, by probes on states.
        displacement, off_distribution: of the swap.
        shared_ratio: τ of one shift for all strata over τ; None: not computed.
        frozen_share: 1 − τ with later norms frozen over τ; None: not computed, or no norms.
        frozen_low90, frozen_high90: 90 % interval of the ES with frozen norms.
        exceeds_low: lower 95 % bound of τ(swap) − 1.25 τ(interchange), in SDs.
        joint: interchange of all positions of the site together; None: there is one.
        together_with: these positions, but for this one.
        joint_over_largest: its |τ| over the largest single one; None: there is one position, or the joint effect is
            below ε.
        kl, flips: mean KL(clean ‖ swapped) in nats, and share of rows whose most probable answer changes.
        p_permutation: of τ, labels shuffled and the shift refitted; None: not asked for.
        comparisons: for other interventions, by name: their numbers (never part of a verdict).
        notes: what could not be measured of the numbers that decide nothing, and why.
    """

    site: str
    position: str
    subspace: EditEffect
    whole: EditEffect
    dose: float
    dose_curve: tuple[tuple[float, float], ...]
    completeness: float
    selectivity: float | None
    reliability: float | None
    displacement: float
    off_distribution: float
    shared_ratio: float | None = None
    frozen_share: float | None = None
    frozen_low90: float | None = None
    frozen_high90: float | None = None
    exceeds_low: float = -math.inf
    joint: EditEffect | None = None
    together_with: tuple[str, ...] = ()
    joint_over_largest: float | None = None
    kl: float | None = None
    flips: float | None = None
    p_permutation: float | None = None
    comparisons: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Name of the place, such as `resid.3@query`."""
        return f"{self.site}@{self.position}" if self.position else self.site


@dataclass(frozen=True)
class Decodability:
    """Decodability of the property at a place, by probes: the gate of a verdict.

    Attributes:
        passes: whether a linear or an MLP probe recovers it.
        accuracy: held out (R² of real values).
        information: share of the label's entropy that the better probe recovers.
        p: one-sided, adjusted for all tests of the gate.
        source: where this was decided.
        prior: accuracy of naming the commonest class always (0 for R²); None: an older record.
        accuracy_low, accuracy_high: interval of the accuracy at the level of its test in the gate: wherever it lies
            above the prior, the gate is passed.
    """

    passes: bool
    accuracy: float
    information: float
    p: float
    source: str = "cross-fitted linear and MLP probes"
    prior: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None


@dataclass(frozen=True)
class UseResult:
    """The measurements of one property and one behaviour at all places.

    Attributes:
        task, behaviour, model: names.
        cells: in the order of depth.
        decodability: by place.
        n_rows, coverage: rows with counterparts in every fold, and their share of all labelled rows.
        least_groups: effective number of groups of the class with fewest: their number where they are even.
        n_classes: K; 0: real values.
        stratified_by, n_strata, covariates, grouped_by: how rows were matched.
        epsilon: smallest effect of interest, in SDs.
        false_positives: of control properties: rate of discoveries with its 95 % interval and their number; None: none
            were run.
        family_p: smallest adjusted p of the property, which enters Benjamini-Hochberg over properties.
        left_out: classes that are too rare to be measured.
        settings: all that enters the numbers.
        twin_pairs: pairs of twins that exchanged states; None: rows matched in the covariates did.
        dimensions: of the behaviour, those in which it varies.
        is_matched: within strata no covariate goes with the property any more.
        answers: for each answer of the behaviour its pieces, as they were measured; () where it has none.
        doubts: what makes the behaviour itself doubtful, as sentences.
    """

    task: str
    behaviour: str
    model: str
    cells: tuple[UseCell, ...]
    decodability: dict[str, Decodability]
    n_rows: int
    coverage: float
    least_groups: float
    n_classes: int
    stratified_by: str
    n_strata: int
    covariates: tuple[str, ...]
    grouped_by: str
    epsilon: float
    false_positives: tuple[float, float, float, int] | None = None
    family_p: float = 1.0
    left_out: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    twin_pairs: int | None = None
    dimensions: int | None = None
    is_matched: bool = True
    answers: Answers = ()
    doubts: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """Hash of everything that entered the result; "" where that is not known."""
        return str(self.settings.get("unit", ""))

    def to_json(self) -> str:
        """Return the result as one JSON line."""
        line = asdict(self)
        line["cells"] = [stored_cell(cell) for cell in line["cells"]]
        return json.dumps(_plain(line), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> UseResult:
        """Return the result that `to_json` wrote.

        Raises:
            InputError: not such a line.
        """
        try:
            result = TypeAdapter(cls).validate_python(_numbers(_read(strict_json(text))))
            check_settings(result.settings)
            return result
        except ValueError as error:
            raise InputError("not a use result", needed="a line of use.jsonl", found=str(error)[:200]) from error


def stored_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell (as a mapping) with the numbers of its edits renamed to the field names used in files."""
    return _with_names(cell, _STORED)


def _read(line: Any) -> Any:
    """Return a line of a file under today's names."""
    cells = line.get("cells") if isinstance(line, dict) else None
    if not isinstance(cells, list):
        return line
    return line | {"cells": [_with_names(cell, _READ) if isinstance(cell, dict) else cell for cell in cells]}


def _with_names(cell: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    edits = {key: cell[key] for key in ("subspace", "whole", "joint") if isinstance(cell.get(key), dict)}
    return dict(cell) | {key: {names.get(n, n): value for n, value in edit.items()} for key, edit in edits.items()}


def write_use_results(results: Iterable[UseResult], path: Path) -> None:
    """Write the results as JSON lines, whole or not at all."""
    write_atomically(path, "".join(result.to_json() + "\n" for result in results).encode())


def read_use_results(path: Path) -> list[UseResult]:
    """Return the results that `write_use_results` wrote.

    Raises:
        InputError: not such a file.
    """
    return read_lines(path, UseResult.from_json, "results of use")


def _plain(value: Any) -> Any:
    """Write infinite numbers as text, for JSON has none."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
