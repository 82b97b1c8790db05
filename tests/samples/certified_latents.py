"""Edits of latents on certified models: a dictionary that holds the directions of every labelled property."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probing.plantbench.case import Case, Cell
from probing.use.effects import EditMeasurement, UseOptions
from probing.use.interventions.latents import Latents
from probing.use.measure import Property
from probing.use.mediating import edited_effect, fitted_edits, shares
from tests.samples.basis_dictionaries import both_ways, dictionary

MOST = 8  # directions of a property in all strata; beyond that they are of all rows together
QUICK = UseOptions(curve=False, details=False, deals=0, null=False)


@dataclass(frozen=True)
class Edited:
    """What an edit of latents did in one cell: numbers of `shares`, and whether an effect is shown."""

    numbers: dict[str, float]
    is_shown: bool


def directions(case: Case, cell: Cell, rows: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Orthonormal directions, one a row, and how many of them, the first ones, are those of the cell's property.

    They are differences of its means, within strata of the other properties where these are few, on these rows only;
    then the same of the other properties, and others up to a basis.
    """
    h = case.instrument.states(cell.place)[rows].astype(np.float64)
    names = [cell.property, *(name for name in case.labels if name != cell.property)]
    columns = [_means(case, name, rows, h) for name in names]
    rest = np.random.default_rng(0).standard_normal((h.shape[1], h.shape[1]))
    q = np.linalg.qr(np.concatenate([*columns, rest], axis=1))[0]
    return np.asarray(q.T), min(columns[0].shape[1], h.shape[1])


def _means(case: Case, name: str, rows: NDArray[np.bool_], h: NDArray[np.float64]) -> NDArray[np.float64]:
    z, k = case.labels[name][rows], case.n_classes[name]
    others = [v[rows] for other, v in case.labels.items() if other != name and case.n_classes[other]]
    strata = np.unique(np.stack(others), axis=1, return_inverse=True)[1].ravel() if others else np.zeros(len(z), int)
    if (strata.max() + 1) * max(1, k - 1) > MOST:
        strata = np.zeros(len(z), int)
    found = []
    for w in np.unique(strata):
        inside = strata == w
        if k:
            means = [h[inside & (z == c)].mean(0) for c in range(k) if (inside & (z == c)).any()]
            found += [mean - means[0] for mean in means[1:]]
        else:
            x = z[inside] - z[inside].mean()
            found.append(x @ h[inside] / (x @ x))
    return np.stack(found, axis=1)


def edited(case: Case, cell: Cell, folder: Path) -> Edited:
    """Set the latents along the cell's property to their means in the other class, and measure that; the dictionary is
    of the states of half the groups, and the other half is measured.
    """
    is_known = case.groups % 2 == 0
    axes, k = directions(case, cell, is_known)
    width, name = len(axes), cell.property
    dictionary(both_ways(axes), bias=0.0, site=cell.place.site).save(folder)
    latents = "|".join(str(i) for part in (range(k), range(width, width + k)) for i in part)
    z = np.where(is_known, -1 if case.n_classes[name] else np.nan, case.labels[name])
    z = z.astype(case.labels[name].dtype)
    prop = Property(name, z, case.n_classes[name], case.groups, case.covariates(name), case.types)
    bench = EditMeasurement.of(case.instrument, prop.plan(QUICK), seed=0)
    edits = fitted_edits(bench, cell.place, Latents(dictionary=str(folder), latents=latents), name="latents")
    effect = edited_effect(bench, cell.place, edits)
    low, high = effect.effect_size_interval()
    return Edited(shares(bench, cell.place, effect, None), low > 0 or high < 0)
