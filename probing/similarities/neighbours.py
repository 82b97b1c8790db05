"""Mutual k-nearest neighbours: the share of the k nearest rows that a row has in both stores, on a sample of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter
from probing.seeds import generator
from probing.similarities.linear import Estimate, around, upper_bound
from probing.similarities.rows import Ints, SharedRows, sums_by_cluster
from probing.similarities.sums import Pair, Source
from probing.statistics.bootstrap import unvaried_interval
from probing.statistics.clusters import is_unvaried

_TIE = 1e-6  # cosines that differ by less are equal up to rounding in float32


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Holds the `nearest` `(m, k)` of each of m rows, and the share of rows in which the k-th and the next are
    `tied`.
    """

    nearest: Ints
    tied: float


@dataclass(frozen=True)
class MutualNeighbours:
    """Holds the share of neighbours that two sites have in common, and the larger share of tied rows."""

    share: Estimate
    ties: float


def sampled_rows(rows: SharedRows, count: int, k: int) -> Ints:
    """Return the numbers of at most `count` random shared rows, in order.

    Raises:
        BadParameter: there are not more than k of them.
    """
    chosen = np.sort(generator(rows.seed, "neighbours").permutation(len(rows))[:count])
    if not 1 <= k < len(chosen) - 1:
        raise BadParameter(
            "there are not so many neighbours",
            needed=f"from 1 to {len(chosen) - 2} neighbours, among {len(chosen):,} rows",
            found=str(k),
            where="neighbours",
        )
    return chosen


def neighbours_of(source: Source, site: str, chosen: Ints, k: int) -> Neighbours:
    """Return the k nearest of the chosen rows to each of them, by the cosine of states about the mean of all rows."""
    states = source.centred(site, chosen)
    lengths = np.linalg.norm(states, axis=1, keepdims=True)
    states /= np.where(lengths > 0, lengths, np.float32(1.0))
    cosines = states @ states.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argpartition(-cosines, k, axis=1)[:, : k + 1]
    values = np.take_along_axis(cosines, nearest, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    nearest, values = np.take_along_axis(nearest, order, axis=1), np.take_along_axis(values, order, axis=1)
    return Neighbours(nearest[:, :k], float((values[:, k - 1] - values[:, k] < _TIE).mean()))


def mutual_neighbours(
    first: Source,
    second: Source,
    pairs: Sequence[Pair],
    rows: SharedRows,
    *,
    k: int,
    sample: int,
    permutations: int,
    advance: Callable[[], None],
) -> dict[Pair, MutualNeighbours]:
    """Return, for pairs of sites, the mean share of the k nearest neighbours that are the same in both.

    The neighbours are sought among a random sample of rows; the interval resamples the clusters of these rows and keeps
    their neighbours.

    Args:
        first, second: the sources; they must have been measured.
        pairs: pairs of sites.
        rows: the shared rows.
        k: number of neighbours.
        sample: number of rows.
        permutations: number of permutations of the null.
        advance: called once for every pair.

    References:
        Huh, Cheung, Wang and Isola 2024, The platonic representation hypothesis, §2 (mutual nearest neighbours).
    """
    chosen = sampled_rows(rows, sample, k)
    ours, theirs = (
        {site: neighbours_of(source, site, chosen, k) for site in dict.fromkeys(pair[side] for pair in pairs)}
        for side, source in enumerate((first, second))
    )
    null = np.empty((len(pairs), permutations))
    for draw, permutation in enumerate(rows.permutations(permutations, chosen)):
        moved = {site: _table(_moved(one.nearest, permutation)) for site, one in theirs.items()}
        null[:, draw] = [_shared(ours[a].nearest, moved[b]).mean() for a, b in pairs]
    groups, found = rows.groups[chosen], {}
    counts = np.bincount(groups, minlength=rows.clusters).astype(np.float64)
    tables = {site: _table(one.nearest) for site, one in theirs.items()}
    for at, (a, b) in enumerate(pairs):
        shares = _shared(ours[a].nearest, tables[b])
        sums = {"shared": sums_by_cluster(shares, groups, rows.clusters), "rows": counts}
        low, high = rows.interval(sums, lambda drawn: drawn["shared"] / np.maximum(drawn["rows"], 1.0))
        if is_unvaried((low, high)):
            low, high = unvaried_interval(float(shares.mean()), int((counts > 0).sum()), least=0.0, most=1.0)
        bounds = (float(null[at].mean()), upper_bound(null[at])) if permutations else (None, None)
        share = Estimate(float(shares.mean()), *around(float(shares.mean()), low, high, least=0.0), *bounds)
        found[a, b] = MutualNeighbours(share, max(ours[a].tied, theirs[b].tied))
        advance()
    return found


def _moved(nearest: Ints, permutation: Ints) -> Ints:
    """Return the neighbours of permuted rows: row i stands for row `permutation[i]`."""
    back = np.argsort(permutation)
    return back[nearest[permutation]]


def _table(nearest: Ints) -> NDArray[np.bool_]:
    """Return `(m, m)` whether row j is among the nearest of row i."""
    found = np.zeros((len(nearest), len(nearest)), bool)
    np.put_along_axis(found, nearest, True, axis=1)
    return found


def _shared(ours: Ints, theirs: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return, for each row, the share of its neighbours that are also neighbours in a table."""
    return np.asarray(np.take_along_axis(theirs, ours, axis=1).mean(1))
