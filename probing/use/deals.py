"""Deals: how τ changes when other rows fit the shift and the contrast, without running the model again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Place
from probing.seeds import generator
from probing.use.contrasts import Contrast, contrast
from probing.use.effect_sums import EffectSums
from probing.use.effects import EditMeasurement
from probing.use.experiment import FOLDS, Experiment
from probing.use.row_weights import NaturalContrast

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def redealt(
    bench: EditMeasurement, place: Place, swap: EffectSums, exchange: EffectSums, *, deals: int
) -> tuple[list[float], list[float]]:
    """Return τ of the swap and of the interchange for each of several other assignments of groups to the fitting folds,
    in SDs of the clean output along the new contrast.

    The groups of the two fitting folds (which fit the shift and the contrast) are assigned to them anew at random; the
    model is not run again. The changes of a swap are converted to the new shift by their derivatives, which were taken
    along the first contrast. So there is no result for the swap where there are several contrasts or outputs of several
    dimensions.

    Args:
        bench: the experiment with its model.
        place: place of the edits.
        swap, exchange: sums measured there for the swap and the interchange.
        deals: number of assignments.
    """
    swaps: list[float] = []
    exchanges: list[float] = []
    for deal in range(deals):
        fits = [_fit(bench, r, deal) for r in range(FOLDS)]
        if bench.is_single:
            swaps.append(float(np.mean([_swapped(bench, place, swap, r, *fit) for r, fit in enumerate(fits)])))
        naturals = [_with(bench, bench.exchanged_naturals[r], rows, fitted) for r, (_, rows, fitted) in enumerate(fits)]
        exchanges.append(float(np.mean([_size(one, exchange.changes[r]) for r, one in enumerate(naturals)])))
    return swaps, exchanges


def _fit(bench: EditMeasurement, r: int, deal: int) -> tuple[Ints, Ints, Contrast]:
    """Return the rows that fit the shift, the rows that fit the contrast, and the contrast."""
    e, (f1, f2, _) = bench.experiment, bench.folds(r)
    first, second = _halves(e, np.concatenate([f1, f2]), generator(bench.seed, "use", "deal", deal, r))
    return first, second, contrast(bench.y[second], e.z[second], e.strata[second], n_classes=e.n_classes)


def _swapped(
    bench: EditMeasurement, place: Place, swap: EffectSums, r: int, first: Ints, second: Ints, fitted: Contrast
) -> float:
    natural, (sides, slopes) = _with(bench, bench.naturals[r], second, fitted), swap.slopes[r]
    moved = bench.shift(bench.states(place), first).difference(sides) - bench.at(place).shifts[r].difference(sides)
    return _size(natural, swap.changes[r]) + float((slopes * moved).sum()) / (natural.spread or 1.0)


def _size(natural: NaturalContrast, changes: Floats) -> float:
    return float(natural.weights.weights @ natural.along(changes)) / (natural.spread or 1.0)


def _with(bench: EditMeasurement, natural: NaturalContrast, rows: Ints, fitted: Contrast) -> NaturalContrast:
    return replace(natural, f2=rows, fitted=fitted, sign=bench.sign_of(fitted))


def _halves(e: Experiment, rows: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return the rows in two parts, whole groups each, each with about half of the groups of every stratum and
    class.
    """
    kinds = e.strata * max(1, e.n_classes) + (e.z if e.n_classes else 0)
    groups, first, of_row = np.unique(e.groups[rows], return_index=True, return_inverse=True)
    order = rng.permutation(len(groups))
    order = order[np.argsort(kinds[rows][first][order], kind="stable")]
    side = np.empty(len(groups), np.int64)
    side[order] = np.arange(len(groups)) % 2
    is_first = side[of_row.reshape(-1)] == rng.integers(2)
    return rows[is_first], rows[~is_first]
