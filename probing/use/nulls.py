"""Null distributions of effects: labels shuffled within strata, random properties of word types, other assignments of
groups to folds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from probing.contracts.edited_model import Place
from probing.seeds import generator
from probing.use.contrasts import Contrast, contrast
from probing.use.effect_sums import EffectSums
from probing.use.effects import EditMeasurement
from probing.use.experiment import FOLDS, Experiment
from probing.use.row_weights import NaturalContrast

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Permuted:
    """Holds the result of a permutation test: shifts fitted to shuffled labels.

    Attributes:
        p: two-sided p value (1 + b) / (1 + B), where b of B draws have an effect |τ| as large as the one measured.
        sd: SD of τ over the draws.
    """

    p: float
    sd: float


def null_error(bench: EditMeasurement, place: Place, *, dose: float) -> float:
    """Return the SD of τ under shuffled labels without running them: the root of Σ gᵀ S g (1/n₁ + 1/n₀), with g the
    derivatives of τ at the unedited states and S the total covariance.
    """
    at, e, variances = bench.at(place), bench.experiment, []
    clean = [at.states.blocks[bench.fold_numbers(r)[2]].astype(bench.dtype(place)) for r in range(FOLDS)]
    slopes = bench.sampled_slopes(place, clean, [[natural.aim] for natural in bench.naturals])
    for r, (sides, found) in enumerate(slopes):
        variances.append(at.shifts[r].null_variance(sides, dose * found[0], e.groups[bench.folds(r)[0]]))
    return math.sqrt(sum(variances)) / FOLDS


def permuted(bench: EditMeasurement, place: Place, tau: float, *, dose: float, draws: int) -> Permuted:
    """Shuffle the labels of F1 within strata (see `shuffled`), refit the shift and measure its τ, `draws` times; return
    the p value of `tau` and the SD of these τ.

    References:
        Phipson and Smyth 2010, Permutation p-values should never be zero.
    """
    states, e, found = bench.states(place), bench.experiment, []
    for draw in range(draws):
        values = []
        for r in range(FOLDS):
            f1, _, f3 = bench.folds(r)
            natural = bench.naturals[r]
            z = shuffled(e, f1, seed=bench.seed, draw=draw * FOLDS + r)
            shift = contrast(states[f1], z, e.strata[f1], n_classes=e.n_classes)
            edited = states[f3] + dose * shift.difference(natural.sides)
            changes = bench.run(place, f3, edited.astype(states.dtype))
            values.append(float(natural.weights.weights @ natural.along(changes)))
        found.append(float(np.mean(values)))
    return Permuted((1 + sum(abs(x) >= abs(tau) for x in found)) / (1 + draws), float(np.std(found, ddof=1)))


def shuffled(e: Experiment, rows: Ints, *, seed: int, draw: int) -> NDArray[Any]:
    """Return labels shuffled within strata: between groups, for groups whose rows all have one label there, else
    between rows.
    """
    rng = generator(seed, "use", "shuffle", draw)
    z = e.z[rows].copy()
    for w in np.unique(e.strata[rows]):
        inside = np.flatnonzero(e.strata[rows] == w)
        _, first, codes = np.unique(e.groups[rows[inside]], return_index=True, return_inverse=True)
        by_unit = z[inside][first]
        z[inside] = (
            rng.permutation(by_unit)[codes] if (by_unit[codes] == z[inside]).all() else rng.permutation(z[inside])
        )
    return z


def random_property(z: NDArray[Any], n_classes: int, types: Ints, *, seed: int, draw: int) -> NDArray[Any]:
    """Draw a random label for every word type, with the frequencies of the labels, and return the labels; rows without
    a label keep none.
    """
    rng = generator(seed, "use", "control property", draw)
    has = z >= 0 if n_classes else np.isfinite(z)
    codes = np.unique(types, return_inverse=True)[1]
    drawn = rng.choice(z[has], size=int(codes.max()) + 1)[codes]
    return np.where(has, drawn, -1 if n_classes else np.nan)


def rate_interval(found: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate, by the method of Clopper and Pearson."""
    low = float(beta.ppf(0.025, found, n - found + 1)) if found else 0.0
    return low, float(beta.ppf(0.975, found + 1, n - found)) if found < n else 1.0


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
