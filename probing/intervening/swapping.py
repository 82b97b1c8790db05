"""The two edits that a verdict rests on, measured at one place: class-mean swaps and interchange of whole states."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probing.instrument import Place
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
        with_u: measure U too.
        frozen_norms: later norms are held at their clean scales.

    References:
        Marks and Tegmark 2023, The Geometry of Truth, §5 (class means).
    """
    tally, naturals = Tally(len(bench.y)), bench.naturals
    edited = [h.astype(bench.dtype(place)) for h in bench.swapped_states(place, dose)]
    changes = bench.run_folds(
        place.site, [one.f3 for one in naturals], {place.position: edited}, frozen_norms=frozen_norms
    )
    expected = [naturals[r - 1].weights.responses(changes[r - 1]).expected(naturals[r].weights)
                for r in range(FOLDS)] if with_u else []  # fmt: skip
    aims = [[natural.aim, *expected[r : r + 1]] for r, natural in enumerate(naturals)]
    through = bench.through_edit(place, edited, aims, frozen_norms=frozen_norms)
    for r, natural in enumerate(naturals):
        if bench.instrument.logits:
            kl, flips = compared(bench.y[natural.f3], changes[r])
            tally.kl.append(kl)
            tally.flips.append(flips)
        f1 = bench.folds(r)[0]
        tally.add(natural, changes[r], through_edit=(f1, dose * through[r][0]))
        if with_u:
            tally.add_u(natural, changes[r], expected[r], (f1, dose * through[r][1]))
    return tally


def interchanged(bench: Bench, place: Place, *, frozen_norms: bool = False) -> Tally:
    """Interchange: rows of a pair exchange their states at one place.

    References:
        Geiger, Lu, Icard and Potts 2021, Causal Abstractions of Neural Networks, §3.
    """
    return exchanged(bench, [place], frozen_norms=frozen_norms)


def exchanged(bench: Bench, places: list[Place], *, frozen_norms: bool = False) -> Tally:
    """As `interchanged`, at several positions of one site together."""
    states = {place.position: bench.states(place) for place in places}
    own, partner = (
        [pairs.T.reshape(-1) for pairs in bench.pairs],
        [pairs[:, ::-1].T.reshape(-1) for pairs in bench.pairs],
    )
    given = {position: [h[rows] for rows in partner] for position, h in states.items()}
    changes = bench.run_folds(places[0].site, own, given, frozen_norms=frozen_norms)
    tally = Tally(len(bench.y), pairs=np.concatenate(bench.pairs))
    for r in range(FOLDS):
        natural, earlier = bench.paired_naturals[r], bench.paired_naturals[r - 1]
        measured, before = changes[(r + 2) % FOLDS], changes[(r + 1) % FOLDS]
        tally.add(natural, measured)
        tally.add_u(natural, measured, earlier.weights.responses(before).expected(natural.weights), None)
    return tally


def dose_curve(
    bench: Bench, place: Place, doses: tuple[float, ...], *, frozen_norms: bool = False
) -> dict[float, float]:
    """τ of class-mean swaps by dose, mean over rotations."""
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
    """Of logits `(n, V)` and changes Δ: mean KL(clean ‖ edited) in nats, and the share whose largest is another.

    With L the log of the sum of exponentials, KL = L(edited) − L(clean) − Σ p Δ.
    """
    edited = clean + changes
    (before, largest), (after, now_largest) = _log_sums(clean), _log_sums(edited)
    kl = after - before - np.einsum("nv,nv->n", np.exp(clean - before[:, None]), changes)
    return float(kl.mean()), float((largest != now_largest).mean())


def _log_sums(logits: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """`(n,)` log Σ exp, and which is the largest."""
    largest = logits.argmax(1)
    top = logits[np.arange(len(logits)), largest]
    return np.log(np.exp(logits - top[:, None]).sum(1)) + top, largest
