"""Debiased linear CKA and held-out Procrustes R² of pairs of sites, with cluster intervals, permutation nulls and the
drift of each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from probing.similarities.rows import Floats, Ints, SharedRows
from probing.similarities.sums import Pair, SiteSums, Source, States, block_rows, hsic, hsic_derivatives, row_products

_GROUP_BYTES = 512 << 20


@dataclass(frozen=True)
class Found:
    """Holds one measure of a pair of sites: value, 95 % interval, and mean and 95 % bound under permutation."""

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

    cka: Found
    procrustes: Found
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
    nulls = _nulls(first, second, pairs, rows, permutations) if permutations else {}
    for pair, (cka, r2) in nulls.items():
        one = found[pair]
        one.cka, one.procrustes = _with_null(one.cka, cka), _with_null(one.procrustes, r2)
    return found


def _with_null(found: Found, samples: Floats) -> Found:
    return Found(found.value, found.low, found.high, float(samples.mean()), upper_bound(samples))


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
            for a, b in pairs:
                found[a, b][h] += x[a].T @ y[b]
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
    crosses = {pair: cross.sum(0) for pair, cross in halves.items()}
    maps = {
        (a, b): [_half_map(first.sums[a], second.sums[b], cross, h, counts) for h in (0, 1)]
        for (a, b), cross in halves.items()
    }
    narrow = {pair: cross.astype(np.float32) for pair, cross in crosses.items()}
    rotations = {pair: [one.rotation.astype(np.float32) for one in both] for pair, both in maps.items()}
    products = {pair: np.empty(len(rows)) for pair in pairs}
    errors = {pair: np.empty(len(rows)) for pair in pairs}
    for part, ours, theirs in _blocks(first, second, pairs, rows):
        chosen = [np.flatnonzero(rows.half[part] == h) for h in (0, 1)]
        split_x, split_y = (
            {site: [states[of_half] for of_half in chosen] for site, states in side.items()} for side in (ours, theirs)
        )
        for a, b in pairs:
            products[a, b][part] = row_products(ours[a] @ narrow[a, b], theirs[b])
            of_a, of_b = first.sums[a], second.sums[b]
            for h in (0, 1):  # the rows of a half are put in place by the map of the other half
                train, at = 1 - h, part.start + chosen[h]
                put, there = split_x[a][h] @ rotations[a, b][train], split_y[b][h]
                shift_x = (of_a.half_means[train] - of_a.mean).astype(np.float32) @ rotations[a, b][train]
                shift_y = (of_b.half_means[train] - of_b.mean).astype(np.float32)
                match = row_products(put, there) - put @ shift_y - there @ shift_x + float(shift_x @ shift_y)
                scale = maps[a, b][train].scale
                errors[a, b][at] = of_b.across[at] - 2.0 * scale * match + scale**2 * of_a.across[at]
    for a, b in pairs:
        one = _measured(first.sums[a], second.sums[b], crosses[a, b], products[a, b], errors[a, b], rows)
        if drift and a == b:
            one.drift = errors[a, b] / max(float(second.sums[b].across.mean()), 1e-300)
        yield (a, b), one


def _half_map(a: SiteSums, b: SiteSums, cross: Floats, half: int, counts: Ints) -> Map:
    """Return the map that is fitted on one half of the rows, about the means of that half."""
    away_a, away_b = a.half_means[half] - a.mean, b.half_means[half] - b.mean
    return Map.fitted(cross[half] - counts[half] * np.outer(away_a, away_b), float(a.energies[half]))


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
        Found(value, max(-1.0, low), min(1.0, high)),
        Found(float(r2), r2_low, min(1.0, r2_high)),
        ratio((cross**2).sum(), (a.cross**2).sum(), (b.cross**2).sum()),
        _without_outliers(a, b, cross),
    )


def ratio(xy: float, xx: float, yy: float) -> float:
    """Return xy / √(xx yy); 0 if a side is constant."""
    return float(xy / math.sqrt(xx * yy)) if xx > 0 and yy > 0 else 0.0


def _without_outliers(a: SiteSums, b: SiteSums, cross: Floats) -> float | None:
    if not len(a.outliers) and not len(b.outliers):
        return None
    k, l = a.norms - a.outlier_norms, b.norms - b.outlier_norms  # noqa: E741
    return ratio(
        hsic(cross[np.ix_(a.kept, b.kept)], k, l),
        hsic(a.cross[np.ix_(a.kept, a.kept)], k, k),
        hsic(b.cross[np.ix_(b.kept, b.kept)], l, l),
    )


def _nulls(
    first: Source, second: Source, pairs: Sequence[Pair], rows: SharedRows, count: int
) -> dict[Pair, tuple[Floats, Floats]]:
    """Return CKA and R² `(P,)` under P permutations of the second store's rows, by pair.

    They are computed on the first principal components of each site. HSIC has mean 0 under permutation whatever the
    states, and its spread is √(Σλ² Σμ²) up to a factor of n alone, so that of all components follows from the share of
    Σλ² that these have. R² of fewer components is nearer to 0 from below, so that its bound is never too low.
    """
    scaled = {pair: _null_scale(first.sums[pair[0]], second.sums[pair[1]]) for pair in pairs}
    halves = [np.flatnonzero(rows.half == h) for h in (0, 1)]
    ours, theirs = (
        _Stacked(source, [pair[side] for pair in pairs], halves) for side, source in enumerate((first, second))
    )
    samples = {pair: np.empty((2, count)) for pair in pairs}
    n, constant = len(rows), np.outer(ours.norms.sum(0), theirs.norms.sum(0)) / ((len(rows) - 1) * (len(rows) - 2))
    for draw, permutation in enumerate(rows.permutations(count)):
        crosses = _products(ours, theirs, pairs, [permutation[half] for half in halves])
        apart = constant - n / (n - 2) * (ours.norms.T @ theirs.norms[permutation])
        for a, b in pairs:
            cross = crosses[a, b]
            square = float((cross.sum(0) ** 2).sum()) + apart[ours.place[a], theirs.place[b]]
            samples[a, b][0, draw] = square * scaled[a, b]
            samples[a, b][1, draw] = _null_r2(first.sums[a], second.sums[b], cross)
    return {pair: (both[0], both[1]) for pair, both in samples.items()}


class _Stacked:
    """Holds the projected states of several sites side by side, of all rows and of each half."""

    def __init__(self, source: Source, sites: Sequence[str], halves: Sequence[Ints]) -> None:
        self.place = {site: at for at, site in enumerate(dict.fromkeys(sites))}
        parts = [source.sums[site].projected for site in self.place]
        ends = np.cumsum([0, *(part.shape[1] for part in parts)])
        self.columns = {site: slice(ends[at], ends[at + 1]) for site, at in self.place.items()}
        self.states = np.concatenate(parts, axis=1)
        self.halves = [self.states[half] for half in halves]
        self.norms = np.stack([row_products(part, part) for part in parts], axis=1)


def _products(ours: _Stacked, theirs: _Stacked, pairs: Sequence[Pair], moved: Sequence[Ints]) -> dict[Pair, Floats]:
    """Return X'Y `(2, r, r)` of projected states in each half, for each pair; `moved` are the rows of Y that are
    matched with each half of X.
    """
    halves = [(x, theirs.states[rows]) for x, rows in zip(ours.halves, moved, strict=True)]
    if len(pairs) == len(ours.place) * len(theirs.place):
        whole = np.stack([x.T @ y for x, y in halves]).astype(np.float64)
        return {(a, b): whole[:, ours.columns[a], theirs.columns[b]] for a, b in pairs}
    return {
        (a, b): np.stack([x[:, ours.columns[a]].T @ y[:, theirs.columns[b]] for x, y in halves]).astype(np.float64)
        for a, b in pairs
    }


def _null_scale(a: SiteSums, b: SiteSums) -> float:
    """Return the factor from HSIC of projected states to CKA of whole ones."""
    captured = math.sqrt(a.captured * b.captured)
    return ratio(1.0, a.own_hsic, b.own_hsic) / captured if captured > 0 else 0.0


def _null_r2(a: SiteSums, b: SiteSums, cross: Floats) -> float:
    """Return the held-out R² of maps fitted on each half, from X'Y `(2, r, r)` of permuted rows."""
    u, s, vt = np.linalg.svd(cross, full_matrices=False)
    maps, scales = u @ vt, s.sum(1) / np.maximum(a.energies, 1e-300)
    gained = [2.0 * scales[1 - h] * (maps[1 - h] * cross[h]).sum() - scales[1 - h] ** 2 * a.energies[h] for h in (0, 1)]
    return float(sum(gained) / max(b.energies.sum(), 1e-300))
