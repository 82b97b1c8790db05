"""The two edits that a verdict rests on, measured at one place: class-mean swaps and interchange of whole states."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probing.instrument import Place
from probing.intervening.cells import RowWeights
from probing.intervening.effects import Bench, Tally
from probing.intervening.experiment import FOLDS

Floats = NDArray[np.float64]


def swapped(
    bench: Bench, place: Place, *, dose: float = 1.0, with_u: bool = True, frozen_norms: bool = False
) -> Tally:  # fmt: skip
    """Class-mean swap: h + a (mean(h | goal, w) − mean(h | start, w)), one shift per stratum w.

    Args:
        bench: the experiment.
        place: of the edit.
        dose: a.
        with_u: measure U too: the edit is fitted on two halves of F1.
        frozen_norms: later norms are held at their clean scales.

    References:
        Marks and Tegmark 2023, The Geometry of Truth, §5 (class means).
    """
    states, tally = bench.states(place), Tally(len(bench.y))
    for r in range(FOLDS):
        f1, _, f3 = bench.folds(r)
        natural = bench.naturals[r]
        shift = bench.shift(states, f1)
        edited = states[f3] + dose * shift.difference(natural.sides)
        changes, slopes = bench.run_with_slopes(
            place, f3, edited.astype(states.dtype), natural.coefficients, frozen_norms=frozen_norms
        )
        if bench.instrument.logits:
            kl, flips = compared(bench.y[f3], bench.y[f3] + changes)
            tally.kl.append(kl)
            tally.flips.append(flips)
        tally.add(natural, changes, through_edit=(f1, shift.influence(natural.sides, dose * slopes)))
        if with_u:
            _swapped_u(bench, place, states, tally, r, dose)
    return tally


def _swapped_u(bench: Bench, place: Place, states: NDArray[np.floating], tally: Tally, r: int, dose: float) -> None:
    first, second = bench.halves(r)
    _, f2, f3 = bench.folds(r)
    natural, sides = bench.naturals[r], bench.sides(r + 1 if bench.folded else r + 2)
    edited = states[f2] + dose * bench.shift(states, first).difference(sides)
    on_f2 = bench.run(place, f2, edited.astype(states.dtype))
    e = bench.experiment
    expected = RowWeights(sides, e.shares, e.n_classes).responses(on_f2).expected(natural.weights)
    shift = bench.shift(states, second)
    edited = states[f3] + dose * shift.difference(natural.sides)
    coefficients = natural.weights.weights[:, None] * expected
    changes, slopes = bench.run_with_slopes(place, f3, edited.astype(states.dtype), coefficients)
    tally.add_u(natural, changes, expected, (second, shift.influence(natural.sides, dose * slopes)))


def interchanged(bench: Bench, place: Place, *, frozen_norms: bool = False) -> Tally:
    """Interchange: rows of a pair exchange their states at one place.

    References:
        Geiger, Lu, Icard and Potts 2021, Causal Abstractions of Neural Networks, §3.
    """
    return exchanged(bench, [place], frozen_norms=frozen_norms)


def exchanged(bench: Bench, places: list[Place], *, frozen_norms: bool = False) -> Tally:
    """As `interchanged`, at several positions of one site together."""
    states = {place.position: bench.states(place) for place in places}
    changes = []
    for pairs in bench.pairs:
        own, partner = pairs.T.reshape(-1), pairs[:, ::-1].T.reshape(-1)
        given = {position: h[partner] for position, h in states.items()}
        changes.append(bench.run_many(places[0].site, own, given, frozen_norms=frozen_norms))
    tally = Tally(len(bench.y), pairs=np.concatenate(bench.pairs))
    for r in range(FOLDS):
        natural, earlier = bench.paired_naturals[r], bench.paired_naturals[(r + 2) % FOLDS]
        measured, before = changes[(r + 2) % FOLDS], changes[(r + 1) % FOLDS]
        tally.add(natural, measured)
        tally.add_u(natural, measured, earlier.weights.responses(before).expected(natural.weights), None)
    return tally


def dose_curve(
    bench: Bench, place: Place, doses: tuple[float, ...], *, frozen_norms: bool = False
) -> dict[float, float]:
    """τ of class-mean swaps by dose, mean over rotations."""
    states, found = bench.states(place), {}
    for dose in doses:
        values = []
        for r in range(FOLDS):
            f1, _, f3 = bench.folds(r)
            natural = bench.naturals[r]
            edited = states[f3] + dose * bench.shift(states, f1).difference(natural.sides)
            changes = bench.run(place, f3, edited.astype(states.dtype), frozen_norms=frozen_norms)
            values.append(float(natural.weights.weights @ natural.along(changes)))
        found[dose] = float(np.mean(values))
    return found


def compared(clean: Floats, edited: Floats) -> tuple[float, float]:
    """Of logits `(n, V)`: mean KL(clean ‖ edited) in nats, and the share of rows whose largest is another."""
    before, after = (y - np.logaddexp.reduce(y, axis=1, keepdims=True) for y in (clean, edited))
    kl = (np.exp(before) * (before - after)).sum(1)
    return float(kl.mean()), float((clean.argmax(1) != edited.argmax(1)).mean())
