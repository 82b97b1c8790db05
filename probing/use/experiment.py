"""Experiment: the rows on which edits of one property are measured, in strata (rows with equal values of the other
properties) and in three folds that never divide a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, DegenerateDesign, TooFewGroups
from probing.seeds import generator
from probing.use.contrasts import check_groups, check_twins, within
from probing.use.strata import BINS, Shares, contrasted, crossed, explained, grouped, imbalance, propensity

FOLDS = 3
LEAST_ROWS, LEAST_GROUPS = 10, 5  # of a class, in a stratum and fold
LEAST_COVERAGE = 0.8
MOST_EXPLAINED = 0.0025  # of the property's variance within strata, by the covariates
MOST_CONTRASTED = 0.1  # SDs of what covariates tell, between values of the property
FINER = (10, 20)  # bins, where five leave too much
MOST_IMBALANCE = 0.1  # standardised difference of a covariate between classes, within bins
TYPE_BOUND = 0.95

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Experiment:
    """Describes the rows that an edit is measured on: those that have counterparts of other classes in their stratum,
    in every fold.

    Attributes:
        rows: `(n,)` rows of the instrument.
        z: `(n,)` classes 0 … K-1, or real values.
        n_classes: number of classes K; 0 for real values.
        strata, groups, folds: `(n,)` codes of each.
        shares: `(W,)` share of the rows in each stratum.
        coverage: n divided by the number of rows that have the property.
        stratified_by: how strata were made: `nothing`, `crossing`, or such as `propensity in 5`, with the number of
            bins.
        grouped_by: `group`, or `type` if the word type nearly determines the label.
        twins: `(n,)` for each row, the row that differs from it in the property only, -1 if there is none; None: rows
            are matched by strata.
        is_matched: whether no covariate is associated with the property within strata.
    """

    rows: Ints
    z: NDArray[Any]
    n_classes: int
    strata: Ints
    groups: Ints
    folds: Ints
    shares: NDArray[np.float64]
    coverage: float
    stratified_by: str
    grouped_by: str
    twins: Ints | None = None
    is_matched: bool = True

    @cached_property
    def least_groups(self) -> float:
        """Effective number of groups of the class that has fewest; for real values, of all groups."""
        z = self.z if self.n_classes else np.zeros_like(self.groups)
        return float(min(Shares.of(z, self.groups, max(1, self.n_classes)).effective))

    @cached_property
    def leverage(self) -> NDArray[np.float64]:
        """Factors `(n,)` by which influence values are multiplied, since the mean that they are taken about includes
        the row's own group.
        """
        return self._by_cell.leverage

    @cached_property
    def df(self) -> float:
        """Degrees of freedom of a standard error: fewer than the number of groups if groups are few or uneven."""
        k = max(1, self.n_classes)
        cells = np.arange(self._by_cell.n_cells)
        weights = self.shares[cells // (k * FOLDS)]
        if self.n_classes:
            weights = weights * self.pair_shares.sum(2).reshape(-1)[cells // FOLDS]
        return self._by_cell.df(weights)

    @property
    def n_cells(self) -> int:
        """Number of cells, (stratum, pair of classes); for real values, the number of strata."""
        return int((self.pair_shares > 0).sum()) // 2 if self.n_classes else len(self.shares)

    @cached_property
    def _by_cell(self) -> Shares:
        """Shares of groups within stratum, class and fold."""
        k = max(1, self.n_classes)
        z = self.z if self.n_classes else np.zeros_like(self.groups)
        return Shares.of((self.strata * k + z) * FOLDS + self.folds, self.groups, len(self.shares) * k * FOLDS)

    @cached_property
    def pair_shares(self) -> NDArray[np.float64]:
        """Weight of a change from one class to another in each stratum, `(W, K, K)`: the product of the classes'
        shares.
        """
        k = self.n_classes
        p = np.bincount(self.strata * k + self.z, minlength=len(self.shares) * k).reshape(-1, k).astype(np.float64)
        found = p[:, :, None] * p[:, None, :]
        found[:, np.arange(k), np.arange(k)] = 0.0
        return np.asarray(found / found.sum((1, 2), keepdims=True))

    def fold(self, k: int) -> Ints:
        """Return the indices of the rows in fold k mod 3, `(n_k,)`."""
        return self._by_fold[k % FOLDS]

    @cached_property
    def _by_fold(self) -> list[Ints]:
        return [np.flatnonzero(self.folds == k) for k in range(FOLDS)]


def plan(
    z: NDArray[Any],
    *,
    n_classes: int,
    groups: NDArray[np.int64],
    covariates: Mapping[str, NDArray[Any]] | None = None,
    types: NDArray[np.int64] | None = None,
    seed: int = 0,
    stratify: bool = True,
    twins: Ints | None = None,
    names: Sequence[str] | None = None,
) -> Experiment:
    """Match the rows that have the property, assign them to folds, and return the experiment.

    Strata are the combinations of the values of all covariates, with real values in five, ten or twenty bins: the first
    number for which, within strata, covariates explain at most 0.25 % of the property's variance (`explained`) and
    differ by at most 0.1 SD between its values (`contrasted`). If no number does, or fewer than 0.8 of the rows remain,
    strata are bins of the property's propensity. If a covariate is associated with the property within these, too, the
    combinations are used after all, and coverage or `is_matched` shows the problem.

    Args:
        z: `(N,)` classes (negative: no label) or real values (NaN: none).
        n_classes: number of classes K; 0 for real values.
        groups: `(N,)` codes of independent units: sentences or documents.
        covariates: by name, `(N,)` codes or real values of the other properties; rows with NaN (not known) are left
            out.
        types: `(N,)` codes of word types; if they nearly determine the class, they are used as groups.
        seed: seed of the folds.
        stratify: whether to use strata; False for comparison.
        twins: `(N,)` for each row, the row that differs from it in the property only, -1 if there is none.
        names: names of the rows, for messages.

    Raises:
        BadParameter: arrays differ in length, or a class code is not below `n_classes`.
        DegenerateDesign: there are fewer than two classes, or no usable stratum.
        TooFewGroups: there are too few groups for three folds.
        BadTwin, OverlappingGroups: see `check_twins` and `check_groups`.
    """
    given = dict(covariates or {}) if stratify else {}
    _check_lengths(z, groups, types, *given.values())
    if n_classes and len(z) and int(np.max(z)) >= n_classes:
        raise BadParameter(
            "a class beyond the number of classes",
            needed=f"0 to {n_classes - 1}, negative: no label",
            found=str(int(np.max(z))),
        )
    labelled = np.isfinite(z) if not n_classes else z >= 0
    known = labelled & np.all([np.isfinite(values) for values in given.values() if values.dtype.kind == "f"], axis=0)
    has = np.flatnonzero(known)
    if len(has) == 0 or len(np.unique(z[has])) < 2:
        raise DegenerateDesign(
            "the property has one value",
            needed="two or more",
            found=f"{len(np.unique(z[has]))} among {len(has)} labelled rows",
        )
    if twins is not None:
        check_twins(twins, z=z, n_classes=n_classes, covariates=dict(covariates or {}), names=names)
    by_type = types is not None and bool(n_classes) and _decided_by(types[has], z[has])
    units = _codes(types[has] if by_type and types is not None else groups[has])
    if twins is not None:
        check_groups(twins, types if by_type and types is not None else groups, names)
    folds = _folds(units, seed)
    strata, how, kept, is_matched = _strata(z[has], n_classes, {k: v[has] for k, v in given.items()}, units, folds)
    if not kept.any():
        raise DegenerateDesign(
            "no stratum has every class in every fold",
            needed=f"{LEAST_ROWS} rows and {LEAST_GROUPS} groups of each",
            found="fewer",
            next_step="give more rows, or fewer covariates",
        )
    rows = has[kept]
    codes = _codes(strata[kept])
    classes = z[rows] if not n_classes else np.searchsorted(np.unique(z[rows]), z[rows]).astype(np.int64)
    return Experiment(
        rows=rows,
        z=classes,
        n_classes=len(np.unique(classes)) if n_classes else 0,
        strata=codes,
        groups=_codes(units[kept]),
        folds=folds[kept],
        shares=np.bincount(codes) / len(codes),
        coverage=len(rows) / int(labelled.sum()),
        stratified_by=how,
        grouped_by="type" if by_type else "group",
        twins=None if twins is None else within(twins, rows, folds[kept]),
        is_matched=is_matched,
    )


def _check_lengths(z: NDArray[Any], *others: NDArray[Any] | None) -> None:
    for values in others:
        if values is not None and len(values) != len(z):
            raise BadParameter("not one value a row", needed=f"{len(z)} rows", found=str(len(values)))


def _codes(values: NDArray[Any]) -> Ints:
    return np.unique(values, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _decided_by(types: Ints, z: NDArray[Any]) -> bool:
    """Return whether at least 0.95 of the rows have the commonest label of their type, and types recur."""
    codes, classes = _codes(types), _codes(z)
    counts = np.zeros((codes.max() + 1, classes.max() + 1))
    np.add.at(counts, (codes, classes), 1)
    recurring = len(counts) * 2 <= len(codes)
    return recurring and float(counts.max(1).sum()) >= TYPE_BOUND * len(codes)


def check_number(groups: int) -> None:
    """Check that there are enough groups for three folds.

    Raises:
        TooFewGroups: there are fewer than 15, five for each of three folds.
    """
    if groups < FOLDS * LEAST_GROUPS:
        raise TooFewGroups(
            "too few groups for three folds",
            needed=f"{FOLDS * LEAST_GROUPS} groups (documents, or sentences that "
            f"stand alone): {LEAST_GROUPS} for each fold",
            found=f"{groups}",
            next_step="give more texts, or finer groups in the column `group` or `document`",
        )


def _folds(units: Ints, seed: int) -> Ints:
    """Return the folds of rows, `(n,)`, whole groups each, near to equal in rows."""
    sizes = np.bincount(units)
    check_number(len(sizes))
    order = generator(seed, "use", "folds").permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    snake = np.concatenate([np.arange(FOLDS), np.arange(FOLDS)[::-1]])
    of_unit = np.empty(len(sizes), np.int64)
    of_unit[order] = np.resize(snake, len(order))
    return np.asarray(of_unit[units])


def _strata(
    z: NDArray[Any], n_classes: int, covariates: Mapping[str, NDArray[Any]], units: Ints, folds: Ints
) -> tuple[Ints, str, NDArray[np.bool_], bool]:
    """Return strata, how they were made, the rows kept, and whether no covariate goes with the property within them."""
    none = np.zeros(len(z), np.int64)
    if not covariates:
        return none, "nothing", _kept(z, n_classes, none, units, folds), True
    given = list(covariates.values())
    exact = all(values.dtype.kind != "f" for values in given)

    def matched(strata: Ints, kept: NDArray[np.bool_]) -> bool:
        rest = [values[kept] for values in given]
        inside = (z[kept], n_classes, rest, strata[kept])
        return explained(*inside) <= MOST_EXPLAINED and contrasted(*inside, folds[kept]) <= MOST_CONTRASTED

    strata = crossed(given)
    kept = _kept(z, n_classes, strata, units, folds)
    is_matched = exact or (bool(kept.any()) and matched(strata, kept))
    if kept.mean() >= LEAST_COVERAGE and is_matched:
        return strata, "crossing", kept, True
    for n_bins in () if exact else FINER:
        finer = crossed(given, n_bins)
        kept_finer = _kept(z, n_classes, finer, units, folds)
        if kept_finer.mean() >= LEAST_COVERAGE and matched(finer, kept_finer):
            return finer, "crossing", kept_finer, True
    score = propensity(z, n_classes, given, folds)
    for n_bins in (BINS, *FINER, *range(BINS - 1, 0, -1)):
        bins = grouped(score, n_bins)
        kept_bins = _kept(z, n_classes, bins, units, folds)
        balanced = imbalance(z, n_classes, given, bins) <= MOST_IMBALANCE
        if kept_bins.mean() >= LEAST_COVERAGE and balanced and matched(bins, kept_bins):
            return bins, f"propensity in {n_bins}", kept_bins, True
    if not kept.any():  # so many combinations: bins, and that they do not match
        bins = grouped(score, BINS)
        return bins, f"propensity in {BINS}", _kept(z, n_classes, bins, units, folds), False
    return strata, "crossing", kept, is_matched


def _kept(z: NDArray[Any], n_classes: int, strata: Ints, units: Ints, folds: Ints) -> NDArray[np.bool_]:
    """Return which rows are of classes that have rows and groups enough in every fold of their stratum, beside another
    such class.
    """
    classes = z.astype(np.int64) if n_classes else np.zeros(len(z), np.int64)
    shape = (int(strata.max()) + 1, max(1, n_classes), FOLDS)
    cell = (strata * shape[1] + classes) * FOLDS + folds
    n_rows = np.bincount(cell, minlength=np.prod(shape)).reshape(shape)
    n_groups = _distinct(cell, units, int(np.prod(shape))).reshape(shape)
    good = np.asarray(((n_rows >= LEAST_ROWS) & (n_groups >= LEAST_GROUPS)).all(2))
    if n_classes:
        good &= good.sum(1, keepdims=True) >= 2
    return np.asarray(good[strata, classes])


def _distinct(cells: Ints, groups: Ints, n: int) -> Ints:
    """Return how many groups there are in each of n cells, `(n,)`."""
    order = np.lexsort((groups, cells))
    cells, groups = cells[order], groups[order]
    new = np.append(True, (cells[1:] != cells[:-1]) | (groups[1:] != groups[:-1]))
    return np.bincount(cells[new], minlength=n)


def goals(experiment: Experiment, rows: Ints, *, seed: int) -> NDArray[Any]:
    """Return, for each of the rows (of one fold), the value that it is edited to: another class of its stratum, drawn
    by frequency.

    For real values it is the value of the row half the ranks away in its stratum, a step of about 1.6 SD in a normal
    distribution.
    """
    rng = generator(seed, "use", "goals")
    z, strata, k = experiment.z[rows], experiment.strata[rows], experiment.n_classes
    found = np.array(z)
    for w in np.unique(strata):
        inside = np.flatnonzero(strata == w)
        if k:
            for v in np.unique(z[inside]).tolist():
                own = rng.permutation(inside[z[inside] == v])
                ends = np.cumsum(experiment.pair_shares[w, v])
                steps = (np.arange(len(own)) + rng.random()) / len(own) * ends[-1]
                found[own] = np.minimum(np.searchsorted(ends, steps, side="right"), k - 1)
        else:
            order = inside[np.argsort(z[inside], kind="stable")]
            found[order] = z[np.roll(order, len(order) // 2)]
    return found
