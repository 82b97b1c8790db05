"""Corrections of standard errors for few and uneven groups, on the same experiments: realised error and power of τ.

    none            as many degrees of freedom as groups tell, variance up by m / (m - 1) for m groups a class and fold
    effective       no factor of the variance; degrees of freedom by the effective number of groups
    CR2             each group's influence made up for its part in the mean; degrees of freedom as effective
    CR2-BM          the same, degrees of freedom by Satterthwaite over groups, as Bell and McCaffrey have it
    CR3             made up for by 1 / (1 - share), as the jackknife has it; degrees of freedom as effective

CR2 is what `probing use` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.special import stdtr

from probing.contracts.edited_model import Place
from probing.use.effects import EditMeasurement, UseOptions
from probing.use.experiment import FOLDS, Experiment
from probing.use.strata import Shares
from probing.use.swapping import swapped
from scripts._bench_use import Planted, planted

NAMES = ("none", "effective", "CR2", "CR2-BM", "CR3")
PLACE = Place("layer.0")


def rates(p: Planted, seeds: int) -> dict[str, float]:
    """Share of seeds at which τ of the swap has p ≤ 0.05, by correction."""
    rejected = np.zeros(len(NAMES))
    for seed in range(seeds):
        instrument, prop = planted(p, seed)
        bench = EditMeasurement.of(instrument, prop.plan(UseOptions()), seed=0)
        tally = swapped(bench, PLACE, with_u=False)
        tau, influence = float(np.mean(tally.tau)), tally.influence / FOLDS
        rejected += [_p(bench.experiment, tau, influence, name) <= 0.05 for name in NAMES]
    return dict(zip(NAMES, rejected / seeds, strict=True))


def _p(e: Experiment, tau: float, influence: np.ndarray, name: str) -> float:
    cells = Shares.of((e.strata * e.n_classes + e.z) * FOLDS + e.folds, e.groups, len(e.shares) * e.n_classes * FOLDS)
    fewest = int(np.bincount(cells.cell).min())
    effective = float(cells.effective.min())
    factor, df = {
        "none": (np.sqrt(fewest / max(1, fewest - 1)), min(e.groups.max(), 2 * FOLDS * (fewest - 1))),
        "effective": (1.0, 2 * FOLDS * (effective - 1)),
        "CR2": (e.leverage, e.df),
        "CR2-BM": (e.leverage, _bell_mccaffrey(cells)),
        "CR3": ((1 / (1 - np.minimum(cells.share, 0.99)))[cells.of_row], 2 * FOLDS * (effective - 1)),
    }[name]
    by_group = np.bincount(e.groups, influence * factor)
    error = math.sqrt(float(by_group @ by_group))
    return float(2 * stdtr(max(1.0, df), -abs(tau) / error))


def _bell_mccaffrey(cells: Shares) -> float:
    """Satterthwaite's degrees of freedom, of cells that weigh alike and groups whose errors are whole."""
    fourth = np.bincount(cells.cell, cells.share**4, cells.n_cells)
    squares = cells.squares
    return float(squares.sum() ** 2 / (squares**2 / np.maximum(squares**2 / fourth - 1, 0.5)).sum())


def table(seeds: int) -> Iterator[str]:
    """Lines: error where nothing is read, and power at 0.5 SD, by sizes of documents and what they have in common."""
    yield f"{'documents':10} {'ICC':>4}  " + "  ".join(f"{name + ' err':>13} {'power':>5}" for name in NAMES)
    for groups in ("documents", "zipf", "treebank"):
        for icc in (0.0, 0.3, 0.64):
            base = Planted(groups=groups, icc=icc, n=1500, answers=1)
            errors, power = rates(base, seeds), rates(replace(base, effect=0.5), seeds)
            yield f"{groups:10} {icc:4.2f}  " + "  ".join(f"{errors[k]:13.3f} {power[k]:5.2f}" for k in NAMES)
