"""The oracle: which cells a model uses, by do-interventions on minimal pairs, whatever its builder meant.

With Δ_i = y(do h := h(x'_i)) − y(x_i) on pairs equal in all but the property, s_i = +1 from class 0 to 1 and −1 back,
π_w the share of pairs in stratum w, s_Y the clean output's SD (root of summed variances):

    S  = sqrt(Σ_w π_w |mean_w s_i Δ_i|²) / s_Y
    E  = sqrt(mean |Δ_i|²) / s_Y
    MF = Σ_w π_w ⟨mean_w s_i Δ_i, t_w⟩ / Σ_w π_w |t_w|²,   t_w = mean_w s_i (y(x'_i) − y(x_i))

With K > 2 classes a stratum has one mean for every pair of classes a < b (s_i = +1 from a to b), and they weigh alike.
With real values the mean is the slope Σ δ_i Δ_i / Σ δ_i², δ = z(x') − z(x), times 2 SD of z: what separates balanced
classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadTwin, PlantFailed
from probing.instrument import Instrument, Place
from probing.intervening.contrasts import sums_by
from probing.intervening.discriminant import Discriminant, Moments
from probing.intervening.responding import behaviour
from probing.plantbench.case import Cell, CellTruth, Certificate, Label, SubLabel

USED, UNUSED = 0.10, 0.02
N_PAIRS = 4096

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Values = Ints | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Means:
    """Means of signed changes by cell (stratum, and pair of classes); of real values, slopes by stratum.

    Attributes:
        codes: `(n,)` cell of each pair.
        shares: weight of each cell, sum 1.
        factors: `(n,)` weight of each pair's change within its cell's mean, signed.
    """

    codes: Ints
    shares: Floats
    factors: Floats

    @classmethod
    def of(cls, start: Values, goal: Values, strata: Ints, n_classes: int, spread: float) -> _Means:
        """Of pairs that go from `start` to `goal`."""
        if not n_classes:
            codes = np.unique(strata, return_inverse=True)[1].astype(np.int64)
            step = goal - start
            return cls(codes, np.bincount(codes) / len(codes), 2 * spread * step / np.bincount(codes, step**2)[codes])
        low, high = np.minimum(start, goal), np.maximum(start, goal)
        keys, codes = np.unique((strata * n_classes + low) * n_classes + high, return_inverse=True)
        of_cell = keys // n_classes**2
        by_stratum = np.bincount(strata) / len(strata)
        shares = by_stratum[of_cell] / np.bincount(of_cell)[of_cell]
        sign = np.where(start < goal, 1.0, -1.0)
        return cls(codes.astype(np.int64), shares, sign / np.bincount(codes)[codes])

    def __call__(self, changes: Floats) -> Floats:
        """`(cells, V)` means of changes `(n, V)`."""
        return sums_by(self.codes, self.factors[:, None] * changes, len(self.shares))

    def size(self, means: Floats) -> float:
        """Root of the weighted mean squared length."""
        return math.sqrt(float(self.shares @ (means**2).sum(1)))


def certify(
    instrument: Instrument, place: Place, pairs: Ints, z: Values, strata: Ints, *, n_classes: int
) -> Certificate:
    """Exchange states between the rows of minimal pairs, at one place.

    Args:
        instrument: whose rows hold both rows of each pair; not the one that rules are given.
        place: of the cell.
        pairs: `(n, 2)` rows x and x'; x drawn as the rules' rows are.
        z: `(N,)` values of the property.
        strata: `(N,)` codes 0 … W-1 of the other properties' values, equal within pairs.
        n_classes: K; 0 for real values.

    Raises:
        BadTwin: pairs of one value, or of two strata.
    """
    x, other = pairs[:, 0], pairs[:, 1]
    _check_pairs(z[x], z[other], strata[x], strata[other])
    y = instrument.clean()
    s_y = math.sqrt(float(y[x].var(0).sum()))
    h = instrument.states(place)
    means = _Means.of(z[x], z[other], strata[x], n_classes, float(np.std(z[x])))
    delta = _changes(instrument, place, x, h[other])
    moved, natural = means(delta), means(y[other] - y[x])
    s, e = means.size(moved) / s_y, math.sqrt(float((delta**2).sum(1).mean())) / s_y
    label: Label = "used" if s >= USED else "unused" if e <= UNUSED else "band"
    frozen = sub = None
    if label == "used":
        if instrument.has_norms:
            frozen = means.size(means(_changes(instrument, place, x, h[other], frozen_norms=True))) / s_y
        swap = _class_mean_swap(h, pairs, z, strata, n_classes)
        sub = means.size(means(_changes(instrument, place, x, swap))) / s_y
    return Certificate(label, _sub_label(label, frozen, sub), s, e, _mediated(means, moved, natural, s_y), frozen, sub,
                       len(pairs))  # fmt: skip


def truth_of(
    cell: Cell, certificate: Certificate, intended: str, accuracy: float, n_classes: int, *, where: str,
    sub_label: str = "",
) -> CellTruth:  # fmt: skip
    """The truth of a cell, if the builder's intention is not contradicted.

    Raises:
        PlantFailed: intended used and certified unused, the reverse, or a sub-label that was meant otherwise.
    """
    found = certificate.label
    if intended and found != "band" and found != intended:
        raise PlantFailed(
            f"{cell} is not what it was built to be", needed=f"{intended} by intention",
            found=f"{found}: S {certificate.s:.3f}, E {certificate.e:.4f}", where=where,
        )  # fmt: skip
    if sub_label and found == "used" and certificate.sub_label != sub_label:
        raise PlantFailed(f"{cell} is used otherwise than it was built to be", needed=sub_label,
                          found=certificate.sub_label, where=where)  # fmt: skip
    kept = "used" if intended == "used" else "unused" if intended == "unused" else ""
    return CellTruth(kept, certificate, accuracy, 1 / n_classes if n_classes else 0.0)  # type: ignore[arg-type]


def probe_accuracy(features: Sequence[NDArray[np.floating]], z: Values, *, n_classes: int) -> float:
    """The best held-out balanced accuracy (R² of real values) of linear probes on several kinds of features `(N, D)`.

    Gaussian classes of one covariance, fitted on the first half of the rows and measured on the second; classes count
    alike, so a rare one cannot hide. States come first; builders add products of what they planted.
    """
    half = len(z) // 2
    best = 0.0
    for given in features:
        X = np.asarray(given, np.float64)
        predicted = Discriminant(Moments.of(X[:half], z[:half], n_classes)).predict(X[half:])
        if not n_classes:
            rest = z[half:] - predicted[:, 0]
            best = max(best, 1 - float((rest**2).mean() / z[half:].var()))
            continue
        odds = predicted / np.maximum(np.bincount(z[:half], minlength=n_classes), 1)
        right = odds.argmax(1) == z[half:]
        best = max(best, float(np.mean([right[z[half:] == k].mean() for k in np.unique(z[half:])])))
    return best


def _check_pairs(start: Values, goal: Values, strata: Ints, of_other: Ints) -> None:
    same, moved = int((start == goal).sum()), int((strata != of_other).sum())
    if same or moved:
        raise BadTwin("not minimal pairs", needed="another value of the property in the same stratum",
                      found=f"{same} pairs of one value, {moved} of two strata, of {len(start)}")  # fmt: skip


def _changes(
    instrument: Instrument, place: Place, rows: Ints, states: NDArray[np.float32], *, frozen_norms: bool = False
) -> Floats:
    """`(n, V)` change of the clean behaviour when rows have other states `(n, D)`."""
    given = {place.position: states}
    return behaviour(instrument, place.site, rows, given, frozen_norms=frozen_norms) - instrument.clean()[rows]


def _class_mean_swap(
    h: NDArray[np.float32], pairs: Ints, z: Values, strata: Ints, n_classes: int
) -> NDArray[np.float32]:
    """`(n, D)` states of x, moved by the difference of the population's class means (or the slope) in their stratum."""
    x, other = pairs[:, 0], pairs[:, 1]
    rows = pairs.reshape(-1)
    states, w = h[rows].astype(np.float64), strata[rows]
    if not n_classes:
        shift = np.zeros((len(x), h.shape[1]))
        for stratum in np.unique(w):
            inside = w == stratum
            centred = z[rows][inside] - z[rows][inside].mean()
            slope = centred @ states[inside] / (centred @ centred)
            own = strata[x] == stratum
            shift[own] = (z[other] - z[x])[own, None] * slope
        return np.asarray(h[x] + shift, np.float32)
    codes = w * n_classes + z[rows].astype(np.int64)
    size = (int(strata.max()) + 1) * n_classes
    means = sums_by(codes, states, size) / np.maximum(np.bincount(codes, minlength=size), 1)[:, None]
    start, goal = (strata[x] * n_classes + values for values in (z[x], z[other]))
    return np.asarray(h[x] + means[goal] - means[start], np.float32)


def _sub_label(label: Label, frozen: float | None, sub: float | None) -> SubLabel:
    if label != "used":
        return ""
    if frozen is not None and frozen <= UNUSED:
        return "norm-mediated"
    return "subspace" if sub is not None and sub >= USED else "site only"


def _mediated(means: _Means, moved: Floats, natural: Floats, s_y: float) -> float | None:
    total = means.size(natural)
    if total / s_y < USED:
        return None
    return float(means.shares @ (moved * natural).sum(1)) / total**2
