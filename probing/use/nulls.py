"""Nulls that are run and not computed: shuffled labels, and random properties of word types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from probing.contracts.edited_model import Place
from probing.seeds import generator
from probing.use.contrasts import contrast
from probing.use.effects import EditMeasurement
from probing.use.experiment import FOLDS, Experiment

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Permuted:
    """Holds the effects of shifts that were fitted to shuffled labels.

    Attributes:
        p: two-sided p value, (1 + b) / (1 + B).
        sd: SD of the effects under shuffled labels.
    """

    p: float
    sd: float


def null_error(bench: EditMeasurement, place: Place, *, dose: float) -> float:
    """Return the SD of τ under shuffled labels, computed from derivatives at the unedited states: the root of Σ gᵀ S g
    (1/n₁ + 1/n₀), with S the total covariance.
    """
    at, e, variances = bench.at(place), bench.experiment, []
    clean = [at.states.blocks[bench.fold_numbers(r)[2]].astype(bench.dtype(place)) for r in range(FOLDS)]
    slopes = bench.sampled_slopes(place, clean, [[natural.aim] for natural in bench.naturals])
    for r, (sides, found) in enumerate(slopes):
        variances.append(at.shifts[r].null_variance(sides, dose * found[0], e.groups[bench.folds(r)[0]]))
    return math.sqrt(sum(variances)) / FOLDS


def permuted(bench: EditMeasurement, place: Place, tau: float, *, dose: float, draws: int) -> Permuted:
    """Shuffle labels within strata, by group, on F1, refit the shift, measure τ, and return the effects.

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
