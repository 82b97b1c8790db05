"""Measured: the measurements at one place, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr

from probing.contracts.edited_model import Place
from probing.results.use import EditEffect, UseCell
from probing.use.effects import UseOptions
from probing.use.inference import Effect, Estimate
from probing.use.state_checks import StateCheckResult


@dataclass(eq=False)
class Measured:
    """Holds the measurements at one place.

    Attributes:
        subspace, whole: effects of the swap and of the interchange.
        kl, flips: mean KL and share of changed answers after the swap, if outputs are logits.
        deals: results of `redealt` for the swap and for the interchange.
        joint: effect of the interchange at all positions of the site together; None if there is only one position.
    """

    place: Place
    dose: float
    state_checks: StateCheckResult
    subspace: Effect
    whole: Effect
    kl: float | None
    flips: float | None
    deals: tuple[Sequence[float], Sequence[float]] = ((), ())
    joint: Effect | None = None

    @property
    def estimates(self) -> list[Estimate]:
        """Estimates of τ and U of both edits."""
        return [*estimates_of(self.subspace), *estimates_of(self.whole)]


def estimates_of(one: Effect) -> list[Estimate]:
    """Return the estimates of τ and U of an effect."""
    return [one.tau, one.u or Estimate(0.0, 0.0, 1, np.zeros(1))]


def recorded(m: Measured, p: Sequence[float], options: UseOptions, measured: Sequence[Measured]) -> UseCell:
    """Return the result cell of a place, with the adjusted p values `p` of its effects; `measured` has the measurements
    at all places, among which are the other positions of the site.
    """
    difference = m.subspace.tau.value - 1.25 * m.whole.tau.value
    error = float(np.linalg.norm(m.subspace.tau.by_group - 1.25 * m.whole.tau.by_group))
    exceeds = np.sign(m.subspace.tau.value or 1.0) * difference - ndtri(0.95) * error
    return UseCell(
        site=m.place.site,
        position=m.place.position,
        subspace=_edit_effect(m.subspace, p[0], p[1], options, m.deals[0]),
        whole=_edit_effect(m.whole, p[2], p[3], options, m.deals[1]),
        joint=None if m.joint is None else _edit_effect(m.joint, p[4], p[5], options),
        together_with=_others(m, measured),
        joint_over_largest=_over_largest(m, measured, options),
        dose=m.dose,
        dose_curve=(),
        completeness=m.state_checks.completeness,
        selectivity=m.state_checks.selectivity,
        reliability=m.state_checks.reliability,
        displacement=m.state_checks.displacement,
        off_distribution=m.state_checks.off_distribution,
        kl=m.kl,
        flips=m.flips,
        exceeds_low=float(exceeds / m.subspace.unit) if m.subspace.unit else 0.0,
    )


def _others(m: Measured, measured: Sequence[Measured]) -> tuple[str, ...]:
    """Return the other positions of its site."""
    return tuple(one.place.position for one in measured if one.place.site == m.place.site and one is not m)


def _over_largest(m: Measured, measured: Sequence[Measured], options: UseOptions) -> float | None:
    """Return |τ| of the joint interchange over the largest single one; None: there is no joint one, or it is below
    ε.
    """
    if m.joint is None or m.joint.whole_effect_size < options.epsilon:
        return None
    largest = max(abs(one.whole.tau.value) for one in measured if one.place.site == m.place.site)
    return abs(m.joint.tau.value) / largest if largest else None


def _edit_effect(
    e: Effect, p_adjusted: float, whole_effect_p_adjusted: float, options: UseOptions, deals: Sequence[float] = ()
) -> EditEffect:
    mf, total, unit = e.mediated_fraction_interval(), e.total.interval(), e.unit
    low, high = e.effect_size_interval()
    low90, high90 = e.effect_size_interval(0.90)
    return EditEffect(
        tau=e.tau.value,
        tau_error=e.tau.error,
        effect_size=e.effect_size,
        effect_size_low=low,
        effect_size_high=high,
        effect_size_low90=low90,
        effect_size_high90=high90,
        p=float(2 * stdtr(e.tau.df, -abs(e.tau.t))),
        p_adjusted=p_adjusted,
        total=e.total.value,
        total_low=total[0],
        total_high=total[1],
        spread=e.spread,
        mediated_fraction=e.mediated_fraction,
        mediated_fraction_low=mf[0] if mf else None,
        mediated_fraction_high=mf[1] if mf else None,
        whole_effect_size=e.whole_effect_size,
        off_high=e.off_high,
        whole_effect_p=float(stdtr(e.u.df, -e.u.t)) if e.u else 1.0,
        whole_effect_p_adjusted=whole_effect_p_adjusted,
        smallest_detectable_effect=e.tau.smallest_detectable_effect / unit if unit else 0.0,
        equivalence_p=e.equivalence_p(options.epsilon),
        null_ratio=None,
        rows=e.rows,
        deals=tuple(one / e.hold for one in deals),
        alike=None if e.alike is None or not unit else e.alike / unit,
    )
