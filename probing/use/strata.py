"""Strata of rows (combinations of covariate values, or bins of the propensity score), and the share that each group has
of the rows of a cell (such as one class in one stratum).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge

Ints = NDArray[np.int64]
BINS = 5
_MOST_CLASSES = 6
_STEP = 1.6  # SDs, by which real values are changed


def crossed(covariates: Sequence[NDArray[Any]], n_bins: int = BINS) -> Ints:
    """Return a code for each combination of values, `(N,)`; real values are first divided into the given number of bins
    of equal size.
    """
    code = np.zeros(len(covariates[0]), np.int64)
    for values in covariates:
        own = binned(values, n_bins) if values.dtype.kind == "f" else values
        codes = np.unique(own, return_inverse=True)[1].reshape(-1)
        code = np.unique(code * (int(codes.max()) + 1) + codes, return_inverse=True)[1].reshape(-1)
    return code.astype(np.int64)


def propensity(z: NDArray[Any], n_classes: int, covariates: Sequence[NDArray[Any]], folds: Ints) -> NDArray[np.float64]:
    """Return the propensity of each row, `(N,)`: the log odds of z predicted from the covariates.

    For more than two classes it is the first principal component of the log odds, for real values the predicted value.
    The model is fitted on all rows if there are fewer columns than a fiftieth of the rows, since overfitting is then no
    problem; otherwise each fold is predicted from the others, at the cost that folds may differ in level.

    References:
        Rosenbaum and Rubin 1984, Reducing bias in observational studies using subclassification.
    """
    X = np.concatenate([_columns(values) for values in covariates], axis=1)
    score = np.zeros(len(z))
    few = X.shape[1] < len(z) / 50
    for fold in [None] if few else np.unique(folds):
        own, rest = (folds >= 0, folds >= 0) if fold is None else (folds == fold, folds != fold)
        if not n_classes:
            score[own] = Ridge(1.0).fit(X[rest], z[rest]).predict(X[own])
        elif len(np.unique(z[rest])) > 1:
            logits = LogisticRegression(max_iter=1000).fit(X[rest], z[rest]).decision_function(X[own])
            score[own] = logits if logits.ndim == 1 else _first_component(logits)
    return score


def _columns(values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind == "f":
        spread = float(values.std()) or 1.0
        return np.asarray(((values - values.mean()) / spread)[:, None], np.float64)
    return np.asarray(values[:, None] == np.unique(values)[None, :], np.float64)


def _first_component(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = logits - logits.mean(0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    return np.asarray(centred @ (direction * np.sign(direction[np.abs(direction).argmax()])))


def grouped(score: NDArray[np.float64], n_bins: int) -> Ints:
    """Return the bin of each score, `(N,)`: the clusters of one-dimensional k-means, which starts at quantiles, so that
    bins end where scores have gaps.
    """
    centres = np.unique(np.quantile(score, (np.arange(n_bins) + 0.5) / n_bins))
    for _ in range(100):
        codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, score)
        counts = np.bincount(codes, minlength=len(centres))
        moved = np.where(counts > 0, np.bincount(codes, score, len(centres)) / np.maximum(counts, 1), centres)
        if np.allclose(moved, centres):
            break
        centres = np.sort(moved)
    return codes.astype(np.int64)


def imbalance(z: NDArray[Any], n_classes: int, covariates: Sequence[NDArray[Any]], strata: Ints) -> float:
    """Return by how much the covariates differ between values of z within strata, beyond chance.

    It is the largest standardised difference of a covariate's column between one class and the rest (for real z, the
    correlation), centred by stratum, minus 1.64 standard errors.
    """
    X = _centred(np.concatenate([_columns(values) for values in covariates], axis=1), strata)
    sides = (z[:, None] == np.unique(z)[None, :]).astype(np.float64) if n_classes else z[:, None].astype(np.float64)
    spread = sides.std(0) if n_classes else np.ones(1)
    Z = _centred(sides, strata)
    norms = np.linalg.norm(X, axis=0)[:, None] * np.linalg.norm(Z, axis=0)[None, :]
    r = np.abs(X.T @ Z) / np.where(norms > 1e-9, norms, np.inf)
    return float(((r - 1.64 / np.sqrt(len(z))) / np.where(spread > 0, spread, np.inf)).max())


def explained(z: NDArray[Any], n_classes: int, covariates: Sequence[NDArray[Any]], strata: Ints) -> float:
    """Return the share of the property's variance within strata that the covariates still explain, linearly and beyond
    chance.

    For more than two classes it is the largest share of any class's indicator. It is 0 if strata match the covariates
    exactly. All columns enter one regression, since each alone may explain little, but all together much.
    """
    X = _centred(np.concatenate([_columns(values) for values in covariates], axis=1), strata)
    sides = (z[:, None] == np.unique(z)[None, :]).astype(np.float64) if n_classes else z[:, None].astype(np.float64)
    Z = _centred(sides, strata)
    left, sizes, _ = np.linalg.svd(X, full_matrices=False)
    basis = left[:, sizes > 1e-9 * max(float(sizes.max(initial=0.0)), 1.0)]
    spare = len(z) - len(np.unique(strata)) - basis.shape[1]
    total = (Z**2).sum(0)
    if not basis.shape[1] or spare < 1 or not total.any():
        return 0.0
    share = ((basis.T @ Z) ** 2).sum(0) / np.where(total > 0, total, np.inf)
    return float((share - (1 - share) * basis.shape[1] / spare).max())


def contrasted(z: NDArray[Any], n_classes: int, covariates: Sequence[NDArray[Any]], strata: Ints, folds: Ints) -> float:
    """Return the difference of the covariates between values of the property, in SDs, estimated as effects are.

    The difference between a class and the rest (for real values, for a step of 1.6 SD), averaged over strata, is
    computed for every real-valued covariate; it is 0 if rows are matched. It is also computed for the prediction of the
    property within strata by boosted trees from all covariates, each fold predicted from the others; trees see steps,
    squares, and slopes that depend on another covariate. Differences that are not significant at 5 % count as 0. Of
    several classes the six most frequent are used.
    """
    X = np.stack([np.asarray(values, np.float64) for values in covariates], axis=1)
    real = X[:, [values.dtype.kind == "f" for values in covariates]]
    counts = np.bincount(z.astype(np.int64), minlength=n_classes) if n_classes else np.zeros(0)
    classes = np.argsort(-counts, kind="stable")[: _MOST_CLASSES if n_classes > 2 else 1]
    sides = np.asarray(z[:, None] == classes[None, :] if n_classes else z[:, None], np.float64)
    centred, found = _centred(sides, strata), 0.0
    for side, weights in zip(centred.T, _difference(sides, centred, strata, bool(n_classes)).T, strict=True):
        told = np.zeros(len(z))
        for fold in np.unique(folds):
            own = folds == fold
            trees = HistGradientBoostingRegressor(max_iter=40, max_leaf_nodes=15, early_stopping=False, random_state=0)
            told[own] = trees.fit(X[~own], side[~own]).predict(X[own])
        told = _centred(told[:, None], strata)[:, 0]
        sizes = [float(weights @ told) / (float(told.std()) or np.inf)]
        sizes += [abs(float(weights @ x)) / (float(x.std()) or np.inf) for x in real.T]
        if max(sizes) > 1.64 * float(np.linalg.norm(weights)):
            found = max(found, *sizes)
    return found


def _difference(sides: NDArray[Any], centred: NDArray[Any], strata: Ints, of_classes: bool) -> NDArray[np.float64]:
    """Return weights `(n, K)` whose products with a column sum to the mean over strata of its difference between
    sides.
    """
    found = np.zeros(sides.shape)
    for w in np.unique(strata):
        inside = np.flatnonzero(strata == w)
        size = 1.0 if of_classes else _STEP * sides.std(0)
        squares = (centred[inside] ** 2).sum(0)
        found[inside] = len(inside) / len(sides) * size * centred[inside] / np.where(squares > 1e-12, squares, np.inf)
    return found


def _centred(rows: NDArray[np.float64], strata: Ints) -> NDArray[np.float64]:
    counts = np.bincount(strata)
    means = np.stack([np.bincount(strata, column) / np.maximum(counts, 1) for column in rows.T], axis=1)
    return np.asarray(rows - means[strata])


def binned(values: NDArray[Any], n_bins: int) -> Ints:
    """Return the quantile bin of each value, `(N,)`, for the given number of bins."""
    edges = np.unique(np.nanquantile(np.asarray(values, np.float64), np.linspace(0, 1, n_bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right").astype(np.int64)


Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shares:
    """Holds the share that each group has of the rows of each cell.

    Attributes:
        cell, group, share: `(M,)` for every combination of cell and group that occurs.
        of_row: `(n,)` index of each row's combination.
        n_cells: number of cells, empty ones included.

    References:
        Carter, Schnepel and Steigerwald 2017, Asymptotic behavior of a t-test robust to cluster heterogeneity; Bell and
        McCaffrey 2002, Bias reduction in standard errors for linear regression with multi-stage samples; Pustejovsky
        and Tipton 2018, Small-sample methods for cluster-robust variance estimation.
    """

    cell: Ints
    group: Ints
    share: Floats
    of_row: Ints
    n_cells: int

    @classmethod
    def of(cls, cells: Ints, groups: Ints, n_cells: int) -> Shares:
        """Return the shares for codes `(n,)` of cells and groups."""
        n_groups = int(groups.max()) + 1
        keys, of_row, counts = np.unique(cells * n_groups + groups, return_inverse=True, return_counts=True)
        cell = keys // n_groups
        rows = np.bincount(cells, minlength=n_cells)
        return cls(cell, keys % n_groups, counts / rows[cell], of_row.reshape(-1), n_cells)

    @cached_property
    def squares(self) -> Floats:
        """For each cell, Σ s² over groups, s the share of its rows in a group, `(n_cells,)`; 0 if it is empty."""
        return np.asarray(np.bincount(self.cell, self.share**2, self.n_cells), np.float64)

    @property
    def effective(self) -> Floats:
        """Effective number of groups of each cell that has rows, 1 / Σ s²; equal to their number if groups are of equal
        size.
        """
        found = self.squares[self.squares > 0]
        return np.asarray(1 / found)

    @cached_property
    def leverage(self) -> Floats:
        """Correction factors `(n,)` for influence values that were taken about the mean of their cell.

        If groups with shares s have independent errors, a group's deviation from the mean has only the fraction 1 − 2s
        + Σs² of its variance (for independent rows, 1 − s); the smaller of the two corrections is applied.
        """
        own = np.minimum(1 - self.share, 1 - 2 * self.share + self.squares[self.cell])
        return np.asarray(1 / np.sqrt(np.maximum(own, 1e-6)))[self.of_row]

    def df(self, weights: Floats) -> float:
        """Return the degrees of freedom of a weighted sum of cell means, from the effective number of groups in each
        cell.

        They are Satterthwaite's, over cells, but at most the effective number of all groups minus one, and at least 1.
        (Those of Bell and McCaffrey, over groups, overstate errors if there are few large groups:
        `scripts/bench_verdicts.py corrections`.)

        Args:
            weights: `(cells,)` weight of each cell's mean.
        """
        used = (self.squares > 0) & (weights > 0)
        own = np.maximum(1 / self.squares[used] - 1, 0.5)
        variance = weights[used] ** 2 * self.squares[used]
        by_cell = variance.sum() ** 2 / (variance**2 / own).sum()
        of_group = np.bincount(self.group, (weights / weights[used].sum())[self.cell] * self.share)
        return float(max(1.0, min(by_cell, 1 / (of_group**2).sum() - 1)))
