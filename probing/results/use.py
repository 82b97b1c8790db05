"""Defines `UseResult` and its parts (`UseCell`, `EditEffect`), the measured effects of edits on a model's output, as
numbers without verdicts.
"""

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

NEVER_ACTIVE = "never_active"  # number of latents that an edit sets and that no row activates
LATENT = "latent_"  # before the number of a latent, in the numbers of an edit that sets it
Answers = tuple[tuple[tuple[int, str], ...], ...]
"""For each answer the pieces that count as it: vocabulary id, and text with its spaces."""


def visible(text: str) -> str:
    """Return a text with all white space and control characters made visible: `␣is` for ` is`."""
    shown = (_SEEN.get(c) or (c if c.isprintable() else ascii(c)[1:-1]) for c in text)
    return "".join(shown)


def answers_said(answers: Answers, *, ids: bool = False, most: int = 12) -> str:
    """Return the answers as `␣was/␣is | ␣were/␣are`, with `ids` as `␣is (314) | ␣are (359)`; empty if there
    are none.
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
    """Holds the measured effect of one kind of edit at one place; docs/use.md defines the symbols.

    Effects are in standard deviations (SDs) of the output of the unedited model. The natural contrast is the difference
    in output between rows of two values of the property. The effect size (ES) is the part of an effect along this
    contrast, in SDs along it, corrected for the noise of the fitted contrast, which hides part of it. The part off the
    contrast, or that differs between strata (rows that agree in all covariates) and pairs of values, is in SDs of the
    whole output. The whole effect is the root of the sum of both squares.

    Attributes:
        tau: τ, the mean effect along the contrast, in the behaviour's unit.
        tau_error: standard error of τ.
        effect_size: the effect size (ES).
        effect_size_low, effect_size_high: ends of its 95 % interval, from the same error as p.
        effect_size_low90, effect_size_high90: ends of its 90 % interval, for tests of equivalence.
        p: two-sided p value of τ.
        p_adjusted: the same, adjusted (max-T) over edits, statistics and places of the property.
        total: T, the size of the natural contrast, in the behaviour's unit.
        total_low, total_high: ends of its 95 % interval.
        spread: standard deviation of the unedited behaviour along the natural contrast, the unit of ES.
        mediated_fraction: τ / T; None if T is not shown to differ from 0.
        mediated_fraction_low, mediated_fraction_high: ends of its 95 % interval; None if it is None.
        whole_effect_size: size of the whole effect.
        off_high: one-sided 95 % upper bound, for tests of equivalence, of the effect that is off the fitted contrast
            but may be along the true one, in SDs along it; for outputs of one dimension, the bound of |ES|.
        whole_effect_p: one-sided p value of U, the statistic of the whole effect.
        whole_effect_p_adjusted: the same, adjusted as `p_adjusted` is.
        smallest_detectable_effect: smallest |ES| that is detected with 80 % probability at 5 %.
        equivalence_p: largest p value of three tests: that |ES|, the whole effect, and the effect that the fitted
            contrast may hide are each below ε, the smallest effect that counts.
        null_ratio: SD of τ under shuffled labels divided by its standard error, at the place of the largest effect.
        rows: number of edited rows.
        deals: ES for other deals; a deal is a random division of the groups outside the measured fold into those that
            the shift is fitted on and those that the contrast is fitted on.
        alike: for an interchange, the ES if states of rows with the *same* value are exchanged; it is already
            subtracted from the other numbers. None for other edits and for minimal pairs.
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
    """Holds the measurements of one property at one place (a cell), without a verdict.

    Attributes:
        site, position: names of the site and position of the edit.
        subspace: effect of the class-mean swap.
        whole: effect of the interchange of whole states.
        dose: factor of the swap's shift, chosen on states, never on outputs.
        dose_curve: pairs (dose, τ of the swap in SDs), sorted by dose.
        completeness: how completely the swap changes the property, as probes of the edited states show (see
            docs/use.md).
        selectivity: how well the swap keeps the other properties, as such probes show.
        reliability: completeness and selectivity combined.
        displacement: how far the swap moves states.
        off_distribution: share of rows that the swap moves out of the distribution of the unedited states.
        shared_ratio: τ of a swap with one shift for all strata, divided by τ; None if not computed.
        frozen_share: 1 − (τ if the scales of later norms are those of the unedited run) / τ; None if not computed, or
            if there are no norms.
        frozen_low90, frozen_high90: ends of the 90 % interval of the ES with these scales.
        exceeds_low: lower 95 % bound of τ(swap) − 1.25 τ(interchange), in SDs.
        joint: effect of the interchange at all positions of the site together; None if there is only one position.
        together_with: the other positions of that joint interchange.
        joint_over_largest: |τ| of the joint interchange divided by the largest |τ| at a single position; None if there
            is only one position, or the joint effect is below ε.
        kl: mean KL divergence of the prediction after the swap from the unedited one, KL(unedited ‖ swapped), in nats.
        flips: share of rows whose most probable answer changes.
        p_permutation: p value of τ by permutation: labels are shuffled and the shift is fitted again; None if not asked
            for.
        comparisons: numbers of other interventions, by name; verdicts never use them.
        notes: which of the numbers that verdicts do not use could not be measured, and why.
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
    """Records whether a property can be read from the states at a place. Verdicts on use require it (this test is
    called the gate).

    Attributes:
        passes: whether a linear or an MLP probe predicts the property better than its frequencies do.
        accuracy: accuracy on held-out rows (R² for real values).
        information: share of the label's entropy that the better of the two probes predicts.
        p: one-sided p value, adjusted for all tests of the gate.
        source: where this was tested.
        prior: accuracy of always predicting the commonest class (0 for R²); None in records of older versions.
        accuracy_low, accuracy_high: ends of an interval of the accuracy, at the level at which the gate tests it; where
            the interval lies above `prior`, the gate is passed.
    """

    passes: bool
    accuracy: float
    information: float
    p: float
    source: str = "cross-fitted linear and MLP probes"
    prior: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None


@dataclass(frozen=True, repr=False)
class UseResult:
    """Holds the measurements of one property and one behaviour at all places.

    Attributes:
        task, behaviour, model: names of the property, of the measured part of the output, and of the model.
        cells: measurements at each place, from the first layer to the last.
        decodability: for each place, whether the property can be read there (the gate).
        n_rows: number of rows (words or sentences) that have counterparts of another class with the same covariates in
            every fold.
        coverage: their share of all labelled rows.
        least_groups: effective number of groups (sentences or documents) of the class that has fewest; it equals their
            number if groups have equal sizes.
        n_classes: number of classes K; 0 for real values.
        stratified_by: what the strata (rows that are compared with each other) were formed by, in words.
        n_strata: number of strata.
        covariates: names of the covariates.
        grouped_by: what the groups are, such as `document`; folds never divide a group.
        epsilon: smallest effect of interest, in SDs.
        false_positives: for control properties (random labels of word forms), the rate of discoveries, its 95 %
            interval and the number of properties; None if none were run.
        family_p: smallest adjusted p of the property, which enters Benjamini-Hochberg over properties.
        left_out: names of classes that are too rare to be measured.
        settings: everything that determined the numbers.
        twin_pairs: number of minimal pairs (twins) whose states were exchanged; None if states were exchanged between
            rows that agree in the covariates.
        dimensions: number of dimensions in which the behaviour varies.
        is_matched: whether, among rows that count as equal in the covariates, no covariate is associated with the
            property.
        answers: for each answer, the tokens whose logits were measured; an empty tuple if there are no answers.
        doubts: reasons to doubt that the behaviour was measured correctly, as sentences.
        unmatched: why nothing was edited: no row has a counterpart that agrees in the covariates; "" if rows were
            matched. There are then no `cells`, and `decodability` is of rows that were not matched.
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
    unmatched: str = ""

    def __repr__(self) -> str:
        return f"UseResult({self.task} and {self.behaviour} of {self.model}, {len(self.cells)} places)"

    @property
    def unit(self) -> str:
        """Hash of all settings and data that determine the result; "" if it is not known."""
        return str(self.settings.get("unit", ""))

    def to_json(self) -> str:
        """Return the result as one JSON line."""
        line = asdict(self)
        line["cells"] = [stored_cell(cell) for cell in line["cells"]]
        return json.dumps(_plain(line), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> UseResult:
        """Return the result that is written in a line of `to_json`.

        Raises:
            InputError: the text is not such a line.
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
        InputError: the file is not such a file.
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
