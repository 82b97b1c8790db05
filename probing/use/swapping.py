"""The two edits that a verdict rests on, measured at one place: class-mean swaps, which add the difference of class
means to a state, and interchange, which replaces the state by that of another row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Place
from probing.seeds import generator
from probing.use.effect_sums import EffectSums
from probing.use.effects import EditMeasurement
from probing.use.experiment import FOLDS
from probing.use.pairing import Exchanges
from probing.use.row_weights import NaturalContrast

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ALIKE_SETS, ALIKE_SHARE = 48, 0.25


def swapped(
    bench: EditMeasurement, place: Place, *, dose: float = 1.0, with_u: bool = True, frozen_norms: bool = False
) -> EffectSums:
    """Measure the class-mean swap and return its sums. Each state h becomes h + a (mean(h | goal, w) − mean(h | start,
    w)), with the dose a and one shift for each stratum w.

    Args:
        bench: the experiment with its model.
        place: place of the edit.
        dose: the factor a.
        with_u: whether to measure U, too.
        frozen_norms: whether later norms divide by their clean scales.

    References:
        Marks and Tegmark 2023, The Geometry of Truth, §5 (class means).
    """
    tally, naturals = EffectSums(bench.dependence, is_single=bench.is_single), bench.naturals
    edited = [h.astype(bench.dtype(place)) for h in bench.swapped_states(place, dose)]
    changes = bench.run_folds(
        place.site, [one.f3 for one in naturals], {place.position: edited}, frozen_norms=frozen_norms
    )
    expected = (
        [naturals[r - 1].weights.responses(changes[r - 1]).expected(naturals[r].weights) for r in range(FOLDS)]
        if with_u
        else []
    )
    scaled = [_scaled(bench, naturals[r - 1], naturals[r], changes[r - 1]) for r in range(FOLDS)] if with_u else []
    aims = [[natural.aim, *expected[r : r + 1], *scaled[r : r + 1]] for r, natural in enumerate(naturals)]
    slopes = bench.sampled_slopes(place, edited, aims, frozen_norms=frozen_norms)
    through = [
        [shift.influence(sides, one) for one in own]
        for shift, (sides, own) in zip(bench.at(place).shifts, slopes, strict=True)
    ]
    tally.slopes = [(sides, dose * own[0]) for sides, own in slopes]
    for r, natural in enumerate(naturals):
        if bench.instrument.logits:
            kl, flips = compared(bench.y[natural.f3], changes[r])
            tally.kl.append(kl)
            tally.flips.append(flips)
        f1 = bench.folds(r)[0]
        tally.add(natural, changes[r], through_edit=(f1, dose * through[r][0]))
        if with_u:
            tally.add_u(natural, changes[r], expected[r], (f1, dose * through[r][1]))
            own = _scaled(bench, natural, natural, changes[r])
            tally.add_w(natural, changes[r], scaled[r], own, (f1, dose * through[r][2]))
    if with_u:
        _add_direction(bench, tally)
    return tally


def _add_direction(bench: EditMeasurement, tally: EffectSums) -> None:
    """Add how far the direction of the contrast is known, where there is more than one."""
    if not bench.is_single:
        tally.dimensions = bench.dimensions
        tally.direction, tally.of_direction = bench.direction(exchanged=tally.exchanged)


def _scaled(bench: EditMeasurement, before: NaturalContrast, natural: NaturalContrast, changes: Floats) -> Floats:
    """Return what rows are expected to change by in all strata alike, times the inverse covariance of the output, `(n,
    V)`.
    """
    return before.weights.pooled.responses(changes).expected(natural.weights.pooled) @ bench.precision


def interchanged(bench: EditMeasurement, place: Place, *, frozen_norms: bool = False) -> EffectSums:
    """Measure the interchange at one place and return its sums: each row gets the state of a donor, a row of another
    value. The effect of getting the state of a donor of the same value is subtracted, unless donors are twins (rows
    that differ in the property only).

    References:
        Geiger, Lu, Icard and Potts 2021, Causal Abstractions of Neural Networks, §3.
    """
    return exchanged(bench, [place], frozen_norms=frozen_norms)


def exchanged(bench: EditMeasurement, places: list[Place], *, frozen_norms: bool = False) -> EffectSums:
    """Measure the interchange at several positions of one site at once, as `interchanged` does at one, and return its
    sums.
    """
    given = [bench.exchanges[(r + 2) % FOLDS] for r in range(FOLDS)]
    changes = _taken(bench, places, [one.own for one in given], [one.donor for one in given], frozen_norms)
    tally = EffectSums(bench.dependence_of_exchanges, is_single=bench.is_single, exchanged=True)
    if all(one.alike is not None for one in given):
        changes = [a - b for a, b in zip(changes, _disturbed(bench, places, given, tally, frozen_norms), strict=True)]
    for r, natural in enumerate(bench.exchanged_naturals):
        before = bench.exchanged_naturals[r - 1].weights.responses(changes[r - 1])
        expected = before.expected(natural.weights)
        tally.add(natural, changes[r])
        tally.add_u(natural, changes[r], expected, None)
        scaled = _scaled(bench, bench.exchanged_naturals[r - 1], natural, changes[r - 1])
        tally.add_w(natural, changes[r], scaled, _scaled(bench, natural, natural, changes[r]), None)
    _add_direction(bench, tally)
    return tally


def _disturbed(
    bench: EditMeasurement, places: list[Place], given: Sequence[Exchanges], tally: EffectSums, frozen_norms: bool
) -> list[Floats]:
    """Return, by rotation, what states of the same value change, `(n, V)`: of some rows, which stand for all others.

    A state from another text may disturb the model whatever its value; that much is no effect of the property.
    """
    rng = generator(bench.seed, "use", "alike")
    few = [one.again(ALIKE_SETS, ALIKE_SHARE, rng) for one in given]
    own = [one.own[rows] for one, rows in zip(given, few, strict=True)]
    donors = [one.alike[rows] for one, rows in zip(given, few, strict=True) if one.alike is not None]
    found = []
    for r, changes in enumerate(_taken(bench, places, own, donors, frozen_norms)):
        natural, rows = bench.exchanged_naturals[r], few[r]
        weights = natural.weights.weights
        whole = np.zeros((len(given[r].own), changes.shape[1]))
        # Each stratum's rows count as often as it takes to stand for all of its rows.
        strata, n_strata = natural.sides.strata, len(bench.experiment.shares)
        known = np.bincount(strata[rows], weights[rows], n_strata)
        times = np.bincount(strata, weights, n_strata) / np.where(known > 0, known, np.inf)
        whole[rows] = times[strata[rows], None] * changes
        tally.alike.append(float(weights @ natural.along(whole)))
        found.append(whole)
    return found


def _taken(
    bench: EditMeasurement, places: list[Place], own: list[Ints], donors: list[Ints], frozen_norms: bool
) -> list[Floats]:
    """Return, by rotation, changes `(n, V)` of rows that take the states of others."""
    given = {place.position: [bench.states(place)[rows] for rows in donors] for place in places}
    return bench.run_folds(places[0].site, own, given, frozen_norms=frozen_norms)


def dose_curve(
    bench: EditMeasurement, place: Place, doses: tuple[float, ...], *, frozen_norms: bool = False
) -> dict[float, float]:
    """Return τ of the class-mean swap at each dose, averaged over rotations."""
    found = {}
    for dose in doses:
        values = []
        for natural, edited in zip(bench.naturals, bench.swapped_states(place, dose), strict=True):
            given = edited.astype(bench.dtype(place))
            changes = bench.run(place, natural.f3, given, frozen_norms=frozen_norms)
            values.append(float(natural.weights.weights @ natural.along(changes)))
        found[dose] = float(np.mean(values))
    return found


def compared(clean: Floats, changes: Floats) -> tuple[float, float]:
    """Return, for logits `(n, V)` and changes Δ, the mean KL(clean ‖ edited) in nats and the share of rows whose
    largest logit changes.

    With L the log of the sum of exponentials, KL = L(edited) − L(clean) − Σ p Δ.
    """
    edited = clean + changes
    (before, largest), (after, now_largest) = _log_sums(clean), _log_sums(edited)
    kl = after - before - np.einsum("nv,nv->n", np.exp(clean - before[:, None]), changes)
    return float(kl.mean()), float((largest != now_largest).mean())


def _log_sums(logits: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return log Σ exp of each row, `(n,)`, and which logit is the largest."""
    largest = logits.argmax(1)
    top = logits[np.arange(len(logits)), largest]
    return np.log(np.exp(logits - top[:, None]).sum(1)) + top, largest
