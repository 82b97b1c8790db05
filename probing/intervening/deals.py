"""Deals: how τ fares where other rows fit the shift and the contrast, without running the model again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from probing.instrument import Place
from probing.intervening.contrasts import Contrast, contrast
from probing.intervening.effects import Bench
from probing.intervening.experiment import FOLDS, Experiment
from probing.intervening.natural import Natural
from probing.intervening.tally import Tally
from probing.seeds import generator

Ints = NDArray[np.int64]


def redealt(bench: Bench, place: Place, swap: Tally, exchange: Tally, *, dose: float, deals: int) -> list[list[float]]:
    """`(deals, 2)` τ of the swap and of the interchange in their units, by deal of the rows outside the measured fold.

    The groups of the two folds that fit are dealt out anew between them. The measured changes stay: of the swap they
    are carried to the new shift by their derivatives in it, at the edit.

    Args:
        bench: the experiment.
        place: of the edits.
        swap, exchange: what was measured there.
        dose: of the swap.
        deals: how many.
    """
    found = []
    for deal in range(deals):
        parts = [_one(bench, place, swap, exchange, r, deal, dose) for r in range(FOLDS)]
        found.append([float(np.mean(column)) for column in zip(*parts, strict=True)])
    return found


def _one(
    bench: Bench, place: Place, swap: Tally, exchange: Tally, r: int, deal: int, dose: float
) -> tuple[float, float]:
    """τ of both in one rotation, over the spread of the clean output along the new contrast, attenuation undone."""
    e = bench.experiment
    f1, f2, _ = bench.folds(r)
    first, second = _halves(e, np.concatenate([f1, f2]), generator(bench.seed, "use", "deal", deal, r))
    fitted = contrast(bench.y[second], e.z[second], e.strata[second], n_classes=e.n_classes)
    own, paired = (_with(bench, one, second, fitted) for one in (bench.naturals[r], bench.exchanged_naturals[r]))
    sides, slopes = swap.slopes[r]
    moved = bench.shift(bench.states(place), first).difference(sides) - bench.at(place).shifts[r].difference(sides)
    tau = float(own.weights.weights @ own.along(swap.changes[r])) + float((slopes * moved).sum())
    whole = float(paired.weights.weights @ paired.along(exchange.changes[r]))
    return tau / (own.spread or 1.0), whole / (paired.spread or 1.0)


def _with(bench: Bench, natural: Natural, rows: Ints, fitted: Contrast) -> Natural:
    return replace(natural, f2=rows, fitted=fitted, sign=bench.sign_of(fitted))


def _halves(e: Experiment, rows: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """The rows in two parts, whole groups each, each with about half of the groups of every stratum and class."""
    kinds = e.strata * max(1, e.n_classes) + (e.z if e.n_classes else 0)
    groups, first, of_row = np.unique(e.groups[rows], return_index=True, return_inverse=True)
    order = rng.permutation(len(groups))
    order = order[np.argsort(kinds[rows][first][order], kind="stable")]
    side = np.empty(len(groups), np.int64)
    side[order] = np.arange(len(groups)) % 2
    is_first = side[of_row.reshape(-1)] == rng.integers(2)
    return rows[is_first], rows[~is_first]
