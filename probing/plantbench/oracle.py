"""The oracle: finds which cells a model uses, by do-interventions on minimal pairs, whatever its builder meant.

With Δ_i = y(do h := h(x'_i)) − y(x_i) on pairs equal in all but the property, s_Y the clean output's SD (root of summed
variances), m_w and t_w means by stratum (and pair of classes) of signed Δ_i and y(x'_i) − y(x_i), π_w their weights:

    S  = the size of m, along t and off it (`yardstick`)
    E  = sqrt(mean |Δ_i|²) / s_Y
    MF = Σ_w π_w ⟨m_w, t_w⟩ / Σ_w π_w |t_w|²

The same of several positions of a site together, all exchanged at once; how they are used is not asked of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Instrument, Place
from probing.errors import BadTwin, PlantFailed
from probing.plantbench.case import Cell, CellTruth, Certificate, Joint, Label, SubLabel
from probing.plantbench.yardstick import SignedMeans, Yardstick
from probing.use.contrasts import sums_by
from probing.use.discriminant import Discriminant, Moments
from probing.use.responding import behaviour

USED, UNUSED = 0.10, 0.02
FAINT = USED / 2  # where s_c is far below s_Y, E alone would call unused what is nearly an effect that counts
N_PAIRS = 4096

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Values = Ints | NDArray[np.float64]


def certify(
    instrument: Instrument, place: Place | Sequence[Place], pairs: Ints, z: Values, strata: Ints, *, n_classes: int
) -> Certificate:
    """Exchange states between the rows of minimal pairs, at one place or at several of one site together.

    Args:
        instrument: whose rows hold both rows of each pair; not the one that rules are given.
        place: of the cell, or places of one site.
        pairs: `(n, 2)` rows x and x'; x drawn as the rules' rows are, x' by the frequency of the other classes.
        z: `(N,)` values of the property.
        strata: `(N,)` codes 0 … W-1 of the other properties' values, equal within pairs.
        n_classes: K; 0 for real values.

    Raises:
        BadTwin: pairs of one value, or of two strata.
    """
    places = [place] if isinstance(place, Place) else list(place)
    x, other = pairs[:, 0], pairs[:, 1]
    _check_pairs(z[x], z[other], strata[x], strata[other])
    y = instrument.clean()
    means = SignedMeans.of(z[x], z[other], strata[x], n_classes=n_classes)
    yardstick = Yardstick.of(means, y[x], y[other] - y[x])
    states = {p: instrument.states(p) for p in places}
    donated = {p: h[other] for p, h in states.items()}
    delta = _changes(instrument, x, donated)
    size, e = yardstick(delta), math.sqrt(float((delta**2).sum(1).mean())) / yardstick.s_y
    label: Label = "used" if size.s >= USED else "unused" if e <= UNUSED and size.s <= FAINT else "band"
    frozen = sub = None
    is_alone = len(places) == 1
    if label == "used" and is_alone:
        if instrument.has_norms:
            frozen = yardstick(_changes(instrument, x, donated, frozen_norms=True)).s
        swap = {p: _class_mean_swap(h, pairs, z, strata, n_classes) for p, h in states.items()}
        sub = yardstick(_changes(instrument, x, swap)).s
    mf = yardstick.mediated(delta) if yardstick.total >= USED else None
    how = _sub_label(label, frozen, sub) if is_alone else ""
    return Certificate(
        label, how, size.s, e, mf, frozen, sub, len(pairs), s_total=size.of_total, along=size.along, off=size.off
    )


def truth_of(
    cell: Cell,
    certificate: Certificate,
    intended: str,
    accuracy: float,
    n_classes: int,
    *,
    where: str,
    sub_label: str = "",
) -> CellTruth:
    """Return the truth of a cell, if the builder's intention is not contradicted.

    Raises:
        PlantFailed: intended used and certified unused, the reverse, or a sub-label that was meant otherwise.
    """
    check_intention(cell, certificate, intended, where=where)
    if sub_label and certificate.label == "used" and certificate.sub_label != sub_label:
        raise PlantFailed(
            f"{cell} is used otherwise than it was built to be",
            needed=sub_label,
            found=certificate.sub_label,
            where=where,
        )
    kept = "used" if intended == "used" else "unused" if intended == "unused" else ""
    return CellTruth(kept, certificate, accuracy, 1 / n_classes if n_classes else 0.0)  # type: ignore[arg-type]


def check_intention(what: Cell | Joint, certificate: Certificate, intended: str, *, where: str) -> None:
    """Refuse what was built to be used and is certified unused, or the reverse.

    Raises:
        PlantFailed: which.
    """
    found = certificate.label
    if intended and found != "band" and found != intended:
        raise PlantFailed(
            f"{what} is not what it was built to be",
            needed=f"{intended} by intention",
            found=f"{found}: S {certificate.s:.3f}, E {certificate.e:.4f}",
            where=where,
        )


def probe_accuracy(features: Sequence[NDArray[np.floating]], z: Values, *, n_classes: int) -> float:
    """Return the best held-out balanced accuracy (R² of real values) of linear probes on several kinds of features `(N,
    D)`.

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
        raise BadTwin(
            "not minimal pairs",
            needed="another value of the property in the same stratum",
            found=f"{same} pairs of one value, {moved} of two strata, of {len(start)}",
        )


def _changes(
    instrument: Instrument, rows: Ints, states: Mapping[Place, NDArray[np.float32]], *, frozen_norms: bool = False
) -> Floats:
    """Return the change of the clean behaviour, `(n, V)`, when rows have other states `(n, D)` at places of one
    site.
    """
    (site,) = {place.site for place in states}
    given = {place.position: h for place, h in states.items()}
    return behaviour(instrument, site, rows, given, frozen_norms=frozen_norms) - instrument.clean()[rows]


def _class_mean_swap(
    h: NDArray[np.float32], pairs: Ints, z: Values, strata: Ints, n_classes: int
) -> NDArray[np.float32]:
    """Return the states of x, `(n, D)`, moved by the difference of the population's class means (or the slope) in their
    stratum.
    """
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
