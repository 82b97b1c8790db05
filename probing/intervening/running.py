"""One property, all places: swaps and interchanges, their effects, and what explains them, as a `UseResult`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr

from probing.instrument import Instrument, Place
from probing.intervening.comparing_edits import compared
from probing.intervening.decoding import decoded
from probing.intervening.effects import Bench
from probing.intervening.experiment import Experiment, plan
from probing.intervening.families import max_t
from probing.intervening.inference import Effect, Estimate, effect
from probing.intervening.nulls import null_error, permuted, random_property, rate_interval
from probing.intervening.on_states import OnStates, StateChecks
from probing.intervening.options import UseOptions
from probing.intervening.swapping import dose_curve, exchanged, interchanged, swapped
from probing.use_result import Decodability, EditEffect, UseCell, UseResult

Ints = NDArray[np.int64]
Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Property:
    """Labels of N rows.

    Attributes:
        name: of the task.
        z: `(N,)` classes 0 … K-1 (negative: none), or real values (NaN: none).
        n_classes: K; 0 for real values.
        groups: `(N,)` codes of what is independent.
        covariates: the other properties, by name: `(N,)` values and K.
        types: `(N,)` codes of word types; None: not known.
        twins: `(N,)` the row that differs from each in this property alone, -1: none; None: donors are matched rows.
        row_names: of the rows, for messages; None: their numbers.
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
        """Its experiment."""
        values = {name: v for name, (v, _) in self.covariates.items()}
        return plan(self.z, n_classes=self.n_classes, groups=self.groups, covariates=values, types=self.types,
                    seed=options.seed, stratify=options.stratify, twins=self.twins, names=self.row_names)  # fmt: skip


@dataclass(eq=False)
class Measured:
    """What was measured at one place."""

    place: Place
    dose: float
    on_states: OnStates
    subspace: Effect
    whole: Effect
    kl: float | None
    flips: float | None

    @property
    def estimates(self) -> list[Estimate]:
        """τ and U of both edits."""
        found = []
        for one in (self.subspace, self.whole):
            found += [one.tau, one.u or Estimate(0.0, 0.0, 1, np.zeros(1))]
        return found


def measure_property(
    instrument: Instrument, prop: Property, *, places: Sequence[Place] | None = None, behaviour: str = "",
    model: str = "", options: UseOptions | None = None, decodability: Mapping[str, Decodability] | None = None,
) -> UseResult:  # fmt: skip
    """Measure what edits of one property do at every place.

    Args:
        instrument: checked before.
        prop: labels of its rows.
        places: all by default.
        behaviour, model: names for the record.
        options: see `UseOptions`.
        decodability: by place, decided elsewhere; places that are not in it are decided here.

    Raises:
        DegenerateDesign, TooFewGroups: see `plan`.
        EditFailed: outputs that are not finite.
    """
    options = options or UseOptions()
    chosen = tuple(places) if places is not None else instrument.places
    instrument.check_places(chosen)
    experiment = prop.plan(options)
    bench = Bench.of(instrument, experiment, seed=options.seed, shared=options.shared, folded=options.folds,
                     slope_rows=options.slope_rows)  # fmt: skip
    known, measured = dict(decodability or {}), []
    for place in chosen:
        measured.append(_measure(bench, place, prop, options))
        if str(place) not in known:
            known[str(place)] = _decodability(bench, place)
    adjusted = _adjusted(measured, options.seed)
    cells = [_cell(m, p, options) for m, p in zip(measured, adjusted, strict=True)]
    if options.details or options.curve:
        cells = [_explained(bench, m, c, options, measured) for m, c in zip(measured, cells, strict=True)]
    if options.comparisons:
        names = options.comparisons
        cells = [replace(c, comparisons=compared(bench, m.place, names)) for m, c in zip(measured, cells, strict=True)]
    if options.null or options.permutations:
        cells = _with_nulls(bench, measured, cells, options)
    return UseResult(
        task=prop.name, behaviour=behaviour, model=model, cells=tuple(cells), decodability=known,
        n_rows=len(experiment.rows), coverage=experiment.coverage, least_groups=experiment.least_groups,
        n_classes=experiment.n_classes, stratified_by=experiment.stratified_by, n_strata=len(experiment.shares),
        covariates=tuple(prop.covariates), grouped_by=experiment.grouped_by, epsilon=options.epsilon,
        false_positives=_false_positives(instrument, prop, chosen, options), family_p=min(min(p) for p in adjusted),
        settings=dict(vars(options)),
        twin_pairs=None if experiment.twins is None else int((experiment.twins >= 0).sum()) // 2,
    )  # fmt: skip


def _measure(bench: Bench, place: Place, prop: Property, options: UseOptions) -> Measured:
    e = bench.experiment
    others = {name: (v[e.rows], k) for name, (v, k) in prop.covariates.items()} if options.details else {}
    dose, on_states = StateChecks(bench, place, others).dose(options.doses)
    swap = swapped(bench, place, dose=dose)
    return Measured(
        place, dose, on_states, effect(swap, e, bench.spread),
        effect(interchanged(bench, place), e, bench.spread),
        float(np.mean(swap.kl)) if swap.kl else None, float(np.mean(swap.flips)) if swap.flips else None,
    )  # fmt: skip


def _adjusted(measured: Sequence[Measured], seed: int) -> list[list[float]]:
    """By place, adjusted p of τ and U of both edits."""
    estimates = [e for m in measured for e in m.estimates]
    found = max_t(estimates, [True, False] * (2 * len(measured)), seed=seed)
    return [found[i : i + 4] for i in range(0, len(found), 4)]


def _cell(m: Measured, p: Sequence[float], options: UseOptions) -> UseCell:
    difference = m.subspace.tau.value - 1.25 * m.whole.tau.value
    error = float(np.linalg.norm(m.subspace.tau.by_group - 1.25 * m.whole.tau.by_group))
    exceeds = np.sign(m.subspace.tau.value or 1.0) * difference - ndtri(0.95) * error
    return UseCell(
        site=m.place.site, position=m.place.position, subspace=_edit_effect(m.subspace, p[0], p[1], options),
        whole=_edit_effect(m.whole, p[2], p[3], options), dose=m.dose, dose_curve=(),
        completeness=m.on_states.completeness, selectivity=m.on_states.selectivity,
        reliability=m.on_states.reliability, displacement=m.on_states.displacement,
        off_distribution=m.on_states.off_distribution, kl=m.kl, flips=m.flips,
        exceeds_low=float(exceeds / m.subspace.spread) if m.subspace.spread else 0.0,
    )  # fmt: skip


def _edit_effect(e: Effect, p_adjusted: float, u_p_adjusted: float, options: UseOptions) -> EditEffect:
    mf = e.mf_interval()
    low, high = e.es_interval()
    low90, high90 = e.es_interval(0.90)
    bound = options.epsilon * e.spread
    p = e.tau_full.equivalence_p(bound) if e.spread else 0.0
    if not e.total_is_established and e.u is not None:
        p = max(p, _u_equivalence_p(e, options.epsilon))
    total = e.total.interval()
    return EditEffect(
        tau=e.tau.value, tau_error=e.tau.error, es=e.es, es_low=low, es_high=high, es_low90=low90, es_high90=high90,
        p=float(2 * stdtr(e.tau.df, -abs(e.tau.t))), p_adjusted=p_adjusted, total=e.total.value, total_low=total[0],
        total_high=total[1], spread=e.spread, mf=e.mf, mf_low=mf[0] if mf else None, mf_high=mf[1] if mf else None,
        es_u=e.es_u, es_u_high=e.es_u_high, u_p=float(ndtr(-e.u.t)) if e.u else 1.0, u_p_adjusted=u_p_adjusted,
        mde=e.tau.mde / e.spread if e.spread else 0.0, equivalence_p=p,
        null_ratio=None, rows=e.rows,
    )  # fmt: skip


def _u_equivalence_p(e: Effect, epsilon: float) -> float:
    assert e.u is not None
    bound = (epsilon * e.y_spread) ** 2
    if e.u_error <= 0:
        return float(e.u.value >= bound)
    return float(ndtr((e.u.value - bound) / e.u_error))


def _decodability(bench: Bench, place: Place) -> Decodability:
    found = decoded(bench.experiment, bench.at(place).states, seed=bench.seed)
    read = found.better
    return Decodability(found.passes, read.accuracy, max(0.0, read.information), found.p, prior=read.prior,
                        accuracy_low=read.accuracy_low, accuracy_high=read.accuracy_high)  # fmt: skip


def _explained(
    bench: Bench, m: Measured, cell: UseCell, options: UseOptions, measured: Sequence[Measured]
) -> UseCell:  # fmt: skip
    """The dose curve; and where there is an effect, how far one shift suffices, norms carry it, positions join."""
    sub, found = m.subspace, cell
    if options.curve:
        doses = tuple(a for a in options.doses if a != m.dose)
        curve = dose_curve(bench, m.place, doses) | {m.dose: sub.tau.value}
        scale = sub.spread or 1.0
        found = replace(found, dose_curve=tuple((a, curve[a] / scale) for a in sorted(curve)))
    least = min(min(edit.p_adjusted, edit.u_p_adjusted) for edit in (cell.subspace, cell.whole))
    if not options.details or least > 0.05:
        return found
    if not options.shared and len(bench.experiment.shares) > 1 and sub.tau.value:
        one = dose_curve(replace_shared(bench), m.place, (m.dose,))[m.dose]
        found = replace(found, shared_ratio=one / sub.tau.value)
    if bench.instrument.has_norms:
        found = _frozen(bench, m, found)
    together = [one for one in measured if one.place.site == m.place.site]
    largest = max(abs(one.whole.tau.value) for one in together)
    if len(together) > 1 and largest:
        joint = effect(exchanged(bench, [one.place for one in together]), bench.experiment, m.whole.y_spread)
        if abs(joint.es) >= options.epsilon:
            found = replace(found, joint_over_largest=abs(joint.tau.value) / largest)
    return found


def replace_shared(bench: Bench) -> Bench:
    """The same experiment with one shift for all strata."""
    return Bench(bench.instrument, bench.experiment, bench.y, bench.seed, shared=True, slope_rows=bench.slope_rows)


def _frozen(bench: Bench, m: Measured, cell: UseCell) -> UseCell:
    """The effect with later norms held at their clean scales: of the swap if it was found, else of the interchange."""
    by_swap = cell.subspace.p_adjusted <= 0.05
    clean = m.subspace if by_swap else m.whole
    tally = (swapped(bench, m.place, dose=m.dose, with_u=False, frozen_norms=True) if by_swap
             else interchanged(bench, m.place, frozen_norms=True))  # fmt: skip
    held = effect(tally, bench.experiment, clean.y_spread)
    low, high = held.es_interval(0.90)
    share = 1 - held.tau.value / clean.tau.value if clean.tau.value else None
    return replace(cell, frozen_share=share, frozen_low90=low, frozen_high90=high)


def _with_nulls(
    bench: Bench, measured: Sequence[Measured], cells: Sequence[UseCell], options: UseOptions
) -> list[UseCell]:
    """Nulls at the place of the largest effect, where they matter most."""
    largest = int(np.argmax([abs(m.subspace.es) for m in measured]))
    m, cell = measured[largest], cells[largest]
    if options.null:
        error = null_error(bench, m.place, dose=m.dose)
        ratio = error / m.subspace.tau.error if m.subspace.tau.error else None
        cell = replace(cell, subspace=replace(cell.subspace, null_ratio=ratio))
    if options.permutations:
        found = permuted(bench, m.place, m.subspace.tau.value, dose=m.dose, draws=options.permutations)
        cell = replace(cell, p_permutation=found.p)
    return [cell if i == largest else c for i, c in enumerate(cells)]


def _false_positives(
    instrument: Instrument, prop: Property, places: Sequence[Place], options: UseOptions
) -> tuple[float, float, float, int] | None:
    """How often a random property of word types is discovered, folds by type."""
    if not options.control_properties or prop.types is None:
        return None
    found = 0
    for draw in range(options.control_properties):
        z = random_property(prop.z, prop.n_classes, prop.types, seed=options.seed, draw=draw)
        control = Property(f"control {draw}", z, prop.n_classes, prop.types, {})
        plain = replace(options, control_properties=0, permutations=0, null=False, curve=False, details=False)
        bench = Bench.of(instrument, control.plan(plain), seed=options.seed, slope_rows=options.slope_rows)
        adjusted = _adjusted([_measure(bench, place, control, plain) for place in places], options.seed)
        found += min(min(p) for p in adjusted) <= 0.05
    n = options.control_properties
    return (found / n, *rate_interval(found, n), n)
