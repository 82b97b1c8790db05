"""Debiased linear CKA and held-out Procrustes R² of pairs of sites, with cluster intervals, permutation nulls and the
drift of each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from probing.similarities.nulls import cka_nulls, r2_nulls
from probing.similarities.rows import Floats, Ints, SharedRows
from probing.similarities.sums import Pair, SiteSums, Source, States, block_rows, hsic, hsic_derivatives, row_products
from probing.system.threads import in_threads

_GROUP_BYTES = 512 << 20


@dataclass(frozen=True)
class Estimate:
    """Holds one measure of a pair of sites: value, 95 % interval, and mean and 95 % bound under permutation; None: not
    known.
    """

    value: float
    low: float
    high: float
    null_mean: float | None = None
    null_bound: float | None = None


@dataclass(eq=False)
class LinearPair:
    """Holds what was measured of a pair of sites.

    Attributes:
        cka, procrustes: the two measures.
        biased: biased CKA.
        without_outliers: debiased CKA without outlier coordinates; None: there are none.
        drift: `(N,)` squared distance of each row of the second store from where the map puts it, over the mean squared
            distance from the mean, so that the mean over rows is 1 − R²; None: not asked for.
    """

    cka: Estimate
    procrustes: Estimate
    biased: float
    without_outliers: float | None
    drift: Floats | None = field(default=None, repr=False)


@dataclass(eq=False)
class Map:
    """Holds an orthogonal map with one scale from states of width A to states of width B.

    If A is larger than B, the missing coordinates count as zeros of the second states, so that the map stays an
    isometry (the error of what it leaves over is in `across` of the first states).
    """

    rotation: Floats
    scale: float

    @classmethod
    def fitted(cls, cross: Floats, energy: float) -> Map:
        """Return the map that minimises the squared error.

        Args:
            cross: `(A, B)` X'Y of the centred states.
            energy: sum of squares of X.

        References:
            Schönemann 1966, A generalized solution of the orthogonal Procrustes problem, Psychometrika 31(1).
        """
        u, s, vt = np.linalg.svd(cross, full_matrices=False)
        return cls(u @ vt, float(s.sum()) / energy if energy > 0 else 0.0)


def linear_pairs(
    first: Source,
    second: Source,
    pairs: Sequence[Pair],
    rows: SharedRows,
    *,
    permutations: int,
    drift: bool,
    advance: Callable[[], None],
) -> dict[Pair, LinearPair]:
    """Return the linear measures of pairs of sites; the sources must have been measured.

    States are read block by block, twice for each group of sites of the first store whose cross-products fit into
    512 MiB.

    Args:
        first, second: the sources.
        pairs: pairs of sites.
        rows: the shared rows.
        permutations: number of permutations of the null.
        drift: whether the drift of rows is returned for pairs of one site.
        advance: called once for every pair.
    """
    found: dict[Pair, LinearPair] = {}
    for group in _groups(first, second, pairs):
        halves = _cross_products(first, second, group, rows)
        for pair, one in _rows_of(first, second, group, rows, halves, drift=drift):
            found[pair] = one
            advance()
    if permutations:
        cka, r2 = (null(first, second, pairs, rows, permutations) for null in (cka_nulls, r2_nulls))
        for pair, one in found.items():
            mean, bound = float(cka[pair].mean()), upper_bound(cka[pair])
            one.cka = replace(one.cka, null_mean=mean, null_bound=bound)
            one.procrustes = replace(one.procrustes, null_bound=upper_bound(r2[pair]))
    return found


def upper_bound(samples: Floats) -> float:
    """Return the smallest sample that at least 95 % of the samples do not exceed."""
    return float(np.quantile(samples, 0.95, method="higher"))


def _groups(first: Source, second: Source, pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Yield the pairs in groups by sites of the first store, so that the matrices of a group fit into memory."""
    group: list[Pair] = []
    for site in dict.fromkeys(a for a, _ in pairs):
        new = [pair for pair in pairs if pair[0] == site]
        if group and sum(28 * first.width(a) * second.width(b) for a, b in group + new) > _GROUP_BYTES:
            yield group
            group = []
        group += new
    if group:
        yield group


def _blocks(
    first: Source, second: Source, pairs: Sequence[Pair], rows: SharedRows
) -> Iterator[tuple[slice, dict[str, States], dict[str, States]]]:
    """Yield the centred states of all sites of the pairs, block by block."""
    ours, theirs = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    size = block_rows([*map(first.width, ours), *map(second.width, theirs)])
    for part in rows.parts(size):
        yield (
            part,
            {site: first.centred(site, part) for site in ours},
            {site: second.centred(site, part) for site in theirs},
        )


def _cross_products(first: Source, second: Source, pairs: Sequence[Pair], rows: SharedRows) -> dict[Pair, Floats]:
    """Return X'Y `(2, A, B)` of the states in each half about the mean of all rows."""
    found = {(a, b): np.zeros((2, first.width(a), second.width(b))) for a, b in pairs}
    for part, ours, theirs in _blocks(first, second, pairs, rows):
        for h in (0, 1):
            chosen = rows.half[part] == h
            x, y = ({site: states[chosen] for site, states in side.items()} for side in (ours, theirs))
            products = in_threads(lambda pair, x=x, y=y: x[pair[0]].T @ y[pair[1]], pairs)  # type: ignore[misc]
            for pair, product in zip(pairs, products, strict=True):
                found[pair][h] += product
    return found


def _rows_of(
    first: Source,
    second: Source,
    pairs: Sequence[Pair],
    rows: SharedRows,
    halves: Mapping[Pair, Floats],
    *,
    drift: bool,
) -> Iterator[tuple[Pair, LinearPair]]:
    """Read the states once more for the terms of each row, and yield what is measured of each pair."""
    counts = np.bincount(rows.half, minlength=2)
    terms = dict(
        zip(
            pairs,
            in_threads(
                lambda pair: _RowTerms.of(first.sums[pair[0]], second.sums[pair[1]], halves[pair], counts), pairs
            ),
            strict=True,
        )
    )
    for part, ours, theirs in _blocks(first, second, pairs, rows):
        fill = partial(_fill, terms, part, _by_half(ours, rows.half[part]), _by_half(theirs, rows.half[part]))
        list(in_threads(fill, pairs))
    for (a, b), of_pair in terms.items():
        errors = of_pair.errors
        one = _measured(first.sums[a], second.sums[b], halves[a, b].sum(0), of_pair.products, errors, rows)
        if drift and a == b:
            one.drift = errors / max(float(second.sums[b].across.mean()), 1e-300)
        yield (a, b), one


@dataclass(frozen=True, eq=False)
class _Block:
    """Holds a block of states `(M, D)` and, for each half, the numbers of its rows in the block and their states."""

    states: States
    rows: list[Ints]
    halves: list[States]


def _by_half(side: Mapping[str, States], half: Ints) -> dict[str, _Block]:
    chosen = [np.flatnonzero(half == h) for h in (0, 1)]
    return {site: _Block(states, chosen, [states[rows] for rows in chosen]) for site, states in side.items()}


def _fill(
    terms: Mapping[Pair, _RowTerms], part: slice, ours: Mapping[str, _Block], theirs: Mapping[str, _Block], pair: Pair
) -> None:
    terms[pair].fill(part, ours[pair[0]], theirs[pair[1]])


@dataclass(frozen=True, eq=False)
class _RowTerms:
    """Holds what each row adds to the measures of a pair of sites.

    Attributes:
        a, b: sums of the two sites.
        cross: `(A, B)` X'Y.
        rotations, scales: of the maps that are fitted on each half.
        products: `(N,)` x' X'Y y of each row.
        errors: `(N,)` squared distance of each row of the second store from where the map of the half that it is not in
            puts it.
    """

    a: SiteSums
    b: SiteSums
    cross: States
    rotations: list[States]
    scales: list[float]
    products: Floats
    errors: Floats

    @classmethod
    def of(cls, a: SiteSums, b: SiteSums, halves: Floats, counts: Ints) -> _RowTerms:
        """Return the terms of no rows yet, from X'Y `(2, A, B)` of each half and the numbers of rows of the halves."""
        maps = [_half_map(a, b, halves, h, counts) for h in (0, 1)]
        rotations = [one.rotation.astype(np.float32) for one in maps]
        products, errors = np.empty(len(a.norms)), np.empty(len(a.norms))
        return cls(a, b, halves.sum(0).astype(np.float32), rotations, [one.scale for one in maps], products, errors)

    def fill(self, part: slice, ours: _Block, theirs: _Block) -> None:
        """Fill the terms of a block of rows."""
        self.products[part] = row_products(ours.states @ self.cross, theirs.states)
        for h in (0, 1):  # the rows of a half are put in place by the map of the other half
            train, at, there = 1 - h, part.start + ours.rows[h], theirs.halves[h]
            put, scale = ours.halves[h] @ self.rotations[train], self.scales[train]
            shift_x = self.a.away[train].astype(np.float32) @ self.rotations[train]
            shift_y = self.b.away[train].astype(np.float32)
            match = row_products(put, there) - put @ shift_y - there @ shift_x + float(shift_x @ shift_y)
            self.errors[at] = self.b.across[at] - 2.0 * scale * match + scale**2 * self.a.across[at]


def _half_map(a: SiteSums, b: SiteSums, cross: Floats, half: int, counts: Ints) -> Map:
    """Return the map that is fitted on one half of the rows, about the means of that half."""
    about_half = cross[half] - counts[half] * np.outer(a.away[half], b.away[half])
    return Map.fitted(about_half, float(a.energies[half]))


def _measured(
    a: SiteSums, b: SiteSums, cross: Floats, products: Floats, errors: Floats, rows: SharedRows
) -> LinearPair:
    own = {"xy": hsic(cross, a.norms, b.norms), "xx": a.own_hsic, "yy": b.own_hsic}
    derivatives = {
        "xy": rows.sums(hsic_derivatives(products, a.norms, b.norms)),
        "xx": a.derivatives,
        "yy": b.derivatives,
    }
    totals = {name: float(values.sum()) for name, values in derivatives.items()}

    def cka_of(sums: Mapping[str, Floats]) -> Floats:
        xy, xx, yy = (own[name] + sums[name] - totals[name] for name in ("xy", "xx", "yy"))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where((xx > 0) & (yy > 0), xy / np.sqrt(np.abs(xx * yy)), np.nan)

    r2_sums = {"error": rows.sums(errors), "all": rows.sums(b.across)}
    value, r2 = ratio(own["xy"], own["xx"], own["yy"]), 1.0 - errors.sum() / max(b.across.sum(), 1e-300)
    low, high = rows.interval(derivatives, cka_of)
    r2_low, r2_high = rows.interval(r2_sums, lambda sums: 1.0 - sums["error"] / np.maximum(sums["all"], 1e-300))
    return LinearPair(
        Estimate(value, *around(value, low, high, least=-1.0)),
        Estimate(float(r2), *around(float(r2), r2_low, r2_high)),
        ratio((cross**2).sum(), (a.cross**2).sum(), (b.cross**2).sum()),
        _without_outliers(a, b, cross),
    )


def around(value: float, low: float, high: float, *, least: float = -math.inf) -> tuple[float, float]:
    """Return an interval that contains the value and lies between `least` and 1; an end that is not a number becomes
    the widest one.
    """
    ends = (least if math.isnan(low) else max(least, low), 1.0 if math.isnan(high) else min(1.0, high))
    return min(ends[0], value), max(ends[1], value)


def ratio(xy: float, xx: float, yy: float) -> float:
    """Return xy / √(xx yy), from -1 to 1 whatever the rounding; 0 if a side is constant."""
    return float(np.clip(xy / math.sqrt(xx * yy), -1.0, 1.0)) if xx > 0 and yy > 0 else 0.0


def _without_outliers(a: SiteSums, b: SiteSums, cross: Floats) -> float | None:
    if not len(a.outliers) and not len(b.outliers):
        return None
    k, l = a.norms - a.outlier_norms, b.norms - b.outlier_norms  # noqa: E741
    return ratio(
        hsic(cross[np.ix_(a.kept, b.kept)], k, l),
        hsic(a.cross[np.ix_(a.kept, a.kept)], k, k),
        hsic(b.cross[np.ix_(b.kept, b.kept)], l, l),
    )
