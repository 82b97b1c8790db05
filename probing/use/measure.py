"""Measures one property at all places, and returns a `UseResult`: the effects of swaps and interchanges, and numbers
that explain them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Instrument, Place
from probing.recipes import build
from probing.results.use import Decodability, UseCell, UseResult
from probing.use.decoding import Decoded, decoded
from probing.use.effect_sums import spared
from probing.use.effects import EditMeasurement, UseOptions
from probing.use.experiment import Experiment, plan
from probing.use.inference import effect, max_t
from probing.use.measured import Measured, estimates_of, recorded
from probing.use.nulls import null_error, permuted, random_property, rate_interval, redealt
from probing.use.state_checks import StateChecks, compared
from probing.use.swapping import dose_curve, exchanged, interchanged, swapped

Ints = NDArray[np.int64]
Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Property:
    """Holds the labels of one property on N rows, with what is needed to match rows.

    Attributes:
        name: name of the task.
        z: `(N,)` classes 0 … K-1 (negative: none), or real values (NaN: none).
        n_classes: number of classes K; 0 for real values.
        groups: `(N,)` codes of independent units (sentences or documents).
        covariates: by name, `(N,)` values of the other properties and their number of classes.
        types: `(N,)` codes of word types; None: not known.
        twins: `(N,)` for each row, the row that differs from it in this property only, -1 if there is none; None:
            donors are matched rows.
        row_names: names of the rows, for messages; None: their numbers.
    """

    name: str
    z: Values
    n_classes: int
    groups: Ints
    covariates: Mapping[str, tuple[Values, int]]
    types: Ints | None = None
    twins: Ints | None = None
    row_names: Sequence[str] | None = None

    def plan(self, options: UseOptions) -> Experiment:
        """Match the rows and return the experiment for the property."""
        values = {name: v for name, (v, _) in self.covariates.items()}
        return plan(
            self.z,
            n_classes=self.n_classes,
            groups=self.groups,
            covariates=values,
            types=self.types,
            seed=options.seed,
            stratify=options.stratify,
            twins=self.twins,
            names=self.row_names,
        )


def measure_property(
    instrument: Instrument,
    prop: Property,
    *,
    places: Sequence[Place] | None = None,
    behaviour: str = "",
    model: str = "",
    options: UseOptions | None = None,
    decodability: Mapping[str, Decodability] | None = None,
) -> UseResult:
    """Edit one property at every place, measure the effects on the behaviour, and return the result.

    Args:
        instrument: instrument whose `check` has passed.
        prop: labels of the instrument's rows.
        places: places to edit; None: all of the instrument.
        behaviour, model: names that are written into the result.
        options: see `UseOptions`.
        decodability: known results of the gate, by place; the gate is applied at all other places.

    Raises:
        UnknownName: the instrument lacks a place.
        DegenerateDesign, TooFewGroups, BadTwin, OverlappingGroups: see `plan`.
        EditFailed: outputs are not finite.
        ProvenanceMismatch, BadParameter: an intervention to compare cannot be made on these states.
    """
    options = options or UseOptions()
    chosen = tuple(places) if places is not None else instrument.places
    instrument.check_places(chosen)
    _check_comparisons(options.comparisons, instrument, chosen)
    experiment = prop.plan(options)
    bench = EditMeasurement.of(
        instrument,
        experiment,
        seed=options.seed,
        shared=options.shared,
        folded=options.folds,
        slope_rows=options.slope_rows,
    )
    known, measured = dict(decodability or {}), []
    for place in chosen:
        measured.append(_measure(bench, place, prop, options))
        if str(place) not in known:
            known[str(place)] = _decodability(bench, place)
    _together(bench, measured)
    adjusted = _adjusted(measured, options.seed)
    cells = [recorded(m, p, options, measured) for m, p in zip(measured, adjusted, strict=True)]
    if options.details or options.curve:
        cells = [_explained(bench, m, c, options) for m, c in zip(measured, cells, strict=True)]
    if options.comparisons:
        cells = [
            spared("comparisons", cell, partial(_with_comparisons, bench, m, options))
            for m, cell in zip(measured, cells, strict=True)
        ]
    if options.null or options.permutations:
        cells = _with_nulls(bench, measured, cells, options)
    return UseResult(
        task=prop.name,
        behaviour=behaviour,
        model=model,
        cells=tuple(cells),
        decodability=known,
        n_rows=len(experiment.rows),
        coverage=experiment.coverage,
        least_groups=experiment.least_groups,
        n_classes=experiment.n_classes,
        stratified_by=experiment.stratified_by,
        n_strata=len(experiment.shares),
        covariates=tuple(prop.covariates),
        grouped_by=experiment.grouped_by,
        epsilon=options.epsilon,
        false_positives=_false_positives(instrument, prop, chosen, options),
        family_p=min(min(p) for p in adjusted),
        settings=dict(vars(options)),
        dimensions=bench.dimensions,
        is_matched=experiment.is_matched,
        twin_pairs=None if experiment.twins is None else int((experiment.twins >= 0).sum()) // 2,
    )


def _check_comparisons(names: Sequence[str], instrument: Instrument, places: Sequence[Place]) -> None:
    """Build the interventions to compare, and check those that read files against the states that they edit."""
    for edit in [build("interventions", name) for name in names]:
        for place in places if edit.files else ():
            if edit.edits(place.site):
                edit.check(place.site, instrument.states(place).shape[1], None)


def _measure(bench: EditMeasurement, place: Place, prop: Property, options: UseOptions) -> Measured:
    e = bench.experiment
    others = {name: (v[e.rows], k) for name, (v, k) in prop.covariates.items()} if options.details else {}
    dose, state_checks = StateChecks(bench, place, others).dose(options.doses)
    swap, exchange = swapped(bench, place, dose=dose), interchanged(bench, place)
    deals = options.deals if options.folds else 0
    return Measured(
        place,
        dose,
        state_checks,
        effect(swap, e, bench.spread),
        effect(exchange, e, bench.spread),
        float(np.mean(swap.kl)) if swap.kl else None,
        float(np.mean(swap.flips)) if swap.flips else None,
        redealt(bench, place, swap, exchange, deals=deals),
    )


def _together(bench: EditMeasurement, measured: Sequence[Measured]) -> None:
    """Exchange the states of all positions of a site together: what none carries alone they may carry jointly."""
    for site in dict.fromkeys(m.place.site for m in measured):
        here = [m for m in measured if m.place.site == site]
        if len(here) > 1:
            joint = effect(exchanged(bench, [m.place for m in here]), bench.experiment, bench.spread)
            for m in here:
                m.joint = joint


def _adjusted(measured: Sequence[Measured], seed: int) -> list[list[float]]:
    """Return, by place, adjusted p of τ and U of both edits, and of the joint edit where there is one."""
    joint = {m.place.site: m.joint for m in measured if m.joint is not None}
    estimates = [e for m in measured for e in m.estimates] + [e for one in joint.values() for e in estimates_of(one)]
    found = max_t(estimates, [True, False] * (len(estimates) // 2), seed=seed)
    single = [found[i : i + 4] for i in range(0, 4 * len(measured), 4)]
    of_joint = {site: found[4 * len(measured) + 2 * i :][:2] for i, site in enumerate(joint)}
    return [[*own, *of_joint.get(m.place.site, [])] for own, m in zip(single, measured, strict=True)]


def _decodability(bench: EditMeasurement, place: Place) -> Decodability:
    return gate_of(decoded(bench.experiment, bench.at(place).states, seed=bench.seed))


def gate_of(found: Decoded) -> Decodability:
    """Return the scores of the probes at a place as the record of the gate."""
    read = found.better
    return Decodability(
        found.passes,
        read.accuracy,
        max(0.0, read.information),
        found.p,
        prior=read.prior,
        accuracy_low=read.accuracy_low,
        accuracy_high=read.accuracy_high,
    )


def _explained(bench: EditMeasurement, m: Measured, cell: UseCell, options: UseOptions) -> UseCell:
    """Return the cell with the dose curve and, where there is an effect, how far one shift suffices and norms carry
    it.
    """
    sub, found = m.subspace, cell
    if options.curve:
        for dose in sorted({*options.doses, m.dose}):
            found = spared(f"swap at dose {dose:g}", found, partial(_at_dose, bench, m, dose))
    least = min(min(edit.p_adjusted, edit.whole_effect_p_adjusted) for edit in (cell.subspace, cell.whole))
    if not options.details or least > 0.05:
        return found
    if not options.shared and len(bench.experiment.shares) > 1 and sub.tau.value:
        found = spared("one shift for all strata", found, partial(_with_one_shift, bench, m))
    if bench.instrument.has_norms:
        found = spared("effect with norms held", found, partial(_frozen, bench, m))
    return found


def _at_dose(bench: EditMeasurement, m: Measured, dose: float, cell: UseCell) -> UseCell:
    tau = m.subspace.tau.value if dose == m.dose else dose_curve(bench, m.place, (dose,))[dose]
    return replace(cell, dose_curve=(*cell.dose_curve, (dose, tau / (m.subspace.unit or 1.0))))


def _with_one_shift(bench: EditMeasurement, m: Measured, cell: UseCell) -> UseCell:
    one = dose_curve(replace_shared(bench), m.place, (m.dose,))[m.dose]
    return replace(cell, shared_ratio=one / m.subspace.tau.value)


def replace_shared(bench: EditMeasurement) -> EditMeasurement:
    """Return a bench for the same experiment with one shift for all strata."""
    return EditMeasurement(
        bench.instrument, bench.experiment, bench.y, bench.seed, shared=True, slope_rows=bench.slope_rows
    )


def _frozen(bench: EditMeasurement, m: Measured, cell: UseCell) -> UseCell:
    """Return the cell with the effect when later norms are held at their clean scales: of the swap if it has an effect,
    else of the interchange.
    """
    by_swap = cell.subspace.p_adjusted <= 0.05
    clean = m.subspace if by_swap else m.whole
    tally = (
        swapped(bench, m.place, dose=m.dose, with_u=False, frozen_norms=True)
        if by_swap
        else interchanged(bench, m.place, frozen_norms=True)
    )
    held = effect(tally, bench.experiment, clean.y_spread)
    low, high = held.effect_size_interval(0.90)
    share = 1 - held.tau.value / clean.tau.value if clean.tau.value else None
    return replace(cell, frozen_share=share, frozen_low90=low, frozen_high90=high)


def _with_nulls(
    bench: EditMeasurement, measured: Sequence[Measured], cells: Sequence[UseCell], options: UseOptions
) -> list[UseCell]:
    """Return the cells with nulls at the place of the largest effect, where they matter most."""
    largest = int(np.argmax([abs(m.subspace.effect_size) for m in measured]))
    m, cell = measured[largest], cells[largest]
    if options.null:
        cell = spared("computed null", cell, partial(_with_null_error, bench, m))
    if options.permutations:
        cell = spared("permutations", cell, partial(_with_permutations, bench, m, options))
    return [cell if i == largest else c for i, c in enumerate(cells)]


def _with_comparisons(bench: EditMeasurement, m: Measured, options: UseOptions, cell: UseCell) -> UseCell:
    swap = m.subspace if m.dose == 1 else None
    return replace(cell, comparisons=compared(bench, m.place, options.comparisons, swap=swap))


def _with_permutations(bench: EditMeasurement, m: Measured, options: UseOptions, cell: UseCell) -> UseCell:
    found = permuted(bench, m.place, m.subspace.tau.value, dose=m.dose, draws=options.permutations)
    return replace(cell, p_permutation=found.p)


def _with_null_error(bench: EditMeasurement, m: Measured, cell: UseCell) -> UseCell:
    error = null_error(bench, m.place, dose=m.dose)
    ratio = error / m.subspace.tau.error if m.subspace.tau.error else None
    return replace(cell, subspace=replace(cell.subspace, null_ratio=ratio))


def _false_positives(
    instrument: Instrument, prop: Property, places: Sequence[Place], options: UseOptions
) -> tuple[float, float, float, int] | None:
    """Return how often a random property of word types is discovered, folds by type."""
    if not options.control_properties or prop.types is None:
        return None
    found = 0
    for draw in range(options.control_properties):
        z = random_property(prop.z, prop.n_classes, prop.types, seed=options.seed, draw=draw)
        control = Property(f"control {draw}", z, prop.n_classes, prop.types, {})
        plain = replace(options, control_properties=0, permutations=0, null=False, curve=False, details=False, deals=0)
        bench = EditMeasurement.of(instrument, control.plan(plain), seed=options.seed, slope_rows=options.slope_rows)
        adjusted = _adjusted([_measure(bench, place, control, plain) for place in places], options.seed)
        found += min(min(p) for p in adjusted) <= 0.05
    n = options.control_properties
    return (found / n, *rate_interval(found, n), n)
