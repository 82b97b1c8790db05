"""Permutation nulls of linear measures: debiased CKA from kernels over all coordinates, and a bound of held-out R²."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from probing.seeds import generator
from probing.similarities.rows import Floats, Ints, SharedRows
from probing.similarities.sums import Pair, SiteSums, Source, States
from probing.system.threads import in_threads

NULL_ROWS, _LEAST_CLUSTERS = 1500, 20
_KERNEL_BYTES = 384 << 20  # of the kernels of the first store's sites that are held at once
_AT_ONCE = 4  # permutations of one kernel that are multiplied together


def null_rows(rows: SharedRows) -> tuple[Ints, float]:
    """Return the numbers of the rows whose kernels are permuted, and the share of the clusters that they are of.

    These are all rows if there are at most 1,500. Of more, clusters are taken whole and at random until they have 1,500
    rows; of clusters so large that fewer than 20 would be taken, 20 with evenly spaced rows.
    """
    if len(rows) <= NULL_ROWS:
        return np.arange(len(rows)), 1.0
    order = generator(rows.seed, "null rows").permutation(rows.clusters)
    sizes = np.bincount(rows.groups, minlength=rows.clusters)
    count = int(np.searchsorted(np.cumsum(sizes[order]), NULL_ROWS)) + 1
    count = min(rows.clusters, max(count, _LEAST_CLUSTERS))
    most = math.ceil(NULL_ROWS / min(count, _LEAST_CLUSTERS))
    parts = [_spaced(np.flatnonzero(rows.groups == cluster), most) for cluster in order[:count]]
    return np.sort(np.concatenate(parts)), count / rows.clusters


def _spaced(of_cluster: Ints, most: int) -> Ints:
    """Return at most `most` evenly spaced elements."""
    if len(of_cluster) <= most:
        return of_cluster
    return of_cluster[np.linspace(0, len(of_cluster) - 1, most).round().astype(np.int64)]


def u_centred(states: States) -> NDArray[np.float32]:
    """Return the U-centred linear kernel `(m, m)` of states `(m, D)`.

    The mean product of two such kernels over m (m - 3) is the unbiased HSIC, and to permute the rows of one is to
    permute rows and columns of its kernel, which leaves its HSIC with itself as it is.

    References:
        Székely and Rizzo 2014, Partial distance correlation with methods for dissimilarities, Annals of Statistics
        42(6), eq. 2.4-2.5 (U-centring); its inner product is the estimator of Song et al. 2012, eq. 5.
    """
    m = len(states)
    centred = states - states.mean(0, dtype=np.float64).astype(np.float32)
    kernel: NDArray[np.float32] = centred @ centred.T
    np.fill_diagonal(kernel, 0.0)
    sums = kernel.sum(1, dtype=np.float64)
    kernel -= (sums / (m - 2)).astype(np.float32)[:, None]
    kernel -= (sums / (m - 2) - sums.sum() / ((m - 1) * (m - 2))).astype(np.float32)
    np.fill_diagonal(kernel, 0.0)
    return kernel


def cka_nulls(first: Source, second: Source, pairs: Sequence[Pair], rows: SharedRows, count: int) -> dict[Pair, Floats]:
    """Return debiased CKA `(P,)` under P permutations of the second store's rows by whole clusters, by pair.

    HSIC under permutation is that of all coordinates on the rows of `null_rows`; HSIC of each site with itself, which
    no permutation changes, is that of all rows. Where the rows are a part of the clusters, HSIC under permutation is
    multiplied by the share of clusters taken: its mean and spread are inversely proportional to the number of clusters.
    """
    chosen, share = null_rows(rows)
    m, n = len(chosen), len(rows)
    factor = share * (n * (n - 3)) / (m * (m - 3))
    moves = list(rows.permutations(count, chosen))
    samples = {pair: np.empty(count) for pair in pairs}
    for group in _kernel_groups(pairs, len(chosen)):
        place = {site: at for at, site in enumerate(dict.fromkeys(a for a, _ in group))}
        ours = np.stack([u_centred(first.centred(site, chosen)).reshape(-1) for site in place])
        for b in dict.fromkeys(b for _, b in group):
            sites = [site for site in place if (site, b) in group]
            kernels = ours if len(sites) == len(place) else ours[[place[site] for site in sites]]
            theirs = u_centred(second.centred(b, chosen))

            def sample(start: int, kernels: States = kernels, theirs: States = theirs) -> Floats:
                part = moves[start : start + _AT_ONCE]
                moved = np.stack([theirs.take(move, axis=0).take(move, axis=1).reshape(-1) for move in part])
                return np.asarray(kernels @ moved.T)

            sampled = np.concatenate(list(in_threads(sample, range(0, count, _AT_ONCE))), axis=1)
            for site, values in zip(sites, sampled, strict=True):
                own = first.sums[site].own_hsic * second.sums[b].own_hsic
                samples[site, b][:] = factor * values / math.sqrt(own)
    return samples


def _kernel_groups(pairs: Sequence[Pair], m: int) -> Iterator[dict[Pair, None]]:
    """Yield the pairs in groups by sites of the first store, whose kernels fit into memory together."""
    sites = list(dict.fromkeys(a for a, _ in pairs))
    fitting = max(1, _KERNEL_BYTES // (4 * m * m))
    for start in range(0, len(sites), fitting):
        here = set(sites[start : start + fitting])
        yield {pair: None for pair in pairs if pair[0] in here}


def r2_nulls(first: Source, second: Source, pairs: Sequence[Pair], rows: SharedRows, count: int) -> dict[Pair, Floats]:
    """Return numbers `(P,)` whose 95 % bound held-out R² stays below under permutation of the second store's rows.

    They are R² of maps between the first 16 principal components of each site (fewer for many rows). Maps of fewer
    coordinates fit less of what is by chance, so that their held-out R² is nearer to 0 from below: the bound is not too
    low, while their mean is not that of R² of all coordinates.
    """
    halves = [np.flatnonzero(rows.half == h) for h in (0, 1)]
    ours, theirs = (
        _Stacked(source, [pair[side] for pair in pairs], halves) for side, source in enumerate((first, second))
    )

    def sample(permutation: Ints) -> list[float]:
        crosses = _products(ours, theirs, pairs, [permutation[half] for half in halves])
        return [_null_r2(first.sums[a], second.sums[b], crosses[a, b]) for a, b in pairs]

    sampled = np.array(list(in_threads(sample, rows.permutations(count))))
    return dict(zip(pairs, sampled.T, strict=True))


class _Stacked:
    """Holds the projected states of several sites side by side, of all rows and of each half."""

    def __init__(self, source: Source, sites: Sequence[str], halves: Sequence[Ints]) -> None:
        self.place = {site: at for at, site in enumerate(dict.fromkeys(sites))}
        parts = [source.sums[site].projected for site in self.place]
        ends = np.cumsum([0, *(part.shape[1] for part in parts)])
        self.columns = {site: slice(ends[at], ends[at + 1]) for site, at in self.place.items()}
        self.states = np.concatenate(parts, axis=1)
        self.halves = [self.states[half] for half in halves]


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


def _null_r2(a: SiteSums, b: SiteSums, cross: Floats) -> float:
    """Return the held-out R² of maps fitted on each half, from X'Y `(2, r, r)` of permuted rows."""
    u, s, vt = np.linalg.svd(cross, full_matrices=False)
    maps, scales = u @ vt, s.sum(1) / np.maximum(a.energies, 1e-300)
    gained = [2.0 * scales[1 - h] * (maps[1 - h] * cross[h]).sum() - scales[1 - h] ** 2 * a.energies[h] for h in (0, 1)]
    return float(sum(gained) / max(b.energies.sum(), 1e-300))
