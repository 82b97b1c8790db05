"""Exchanges: the rows of a fold that take the state of a row of another value, and of a row of the same value beside
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.seeds import generator
from probing.use.experiment import Experiment
from probing.use.twins import twin_pairs

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SMALL_GROUPS = 2  # rows of a group on average, up to which rows are ordered by place in the text, not by group


@dataclass(frozen=True, eq=False)
class Exchanges:
    """Exchanges of states among n rows of one fold.

    Rows come in closed sets: two rows of one value and two of another. Each takes the state of a row of the other value
    and, in a second run, of the row of its own value: any foreign state may disturb a model, and the difference of the
    two runs is what the value does. Sets share no row, so each is one independent observation (up to shared groups).

    Attributes:
        own: `(n,)` rows of the experiment, each once.
        donor: `(n,)` rows of another value whose states they take.
        alike: `(n,)` rows of the same value whose states they take in the second run; None: twins, which differ in
            nothing else, so that no second run is needed.
        sets: `(n,)` codes of the closed sets, each pair of twins one.
    """

    own: Ints
    donor: Ints
    alike: Ints | None
    sets: Ints

    def again(self, least: int, share: float, rng: np.random.Generator) -> Ints:
        """Return which of the n are run a second time: whole sets, a share of them, and `least` sets if there are as
        many.

        Within a set states of one value change places, so that its sum hardly varies: a few sets tell the mean.
        """
        n_sets = int(self.sets.max(initial=-1)) + 1
        chosen = rng.permutation(n_sets)[: max(least, math.ceil(share * n_sets))]
        return np.flatnonzero(np.isin(self.sets, chosen))


def exchanges(experiment: Experiment, rows: Ints, *, seed: int, offsets: Ints | None = None) -> Exchanges:
    """Return exchanges among `rows` (of one fold), within strata.

    Every class is cut into parts, one for each other class, in proportion to how frequent that one is (even classes:
    K − 1 equal parts), so that each pair of classes has as many exchanges as its rows allow for and none rests on a
    few. Donors are of another group than the row: both of them, so that neither is the less foreign. Rows at the same
    offset (`(n,)`, of all rows of the experiment) are preferred where groups are small; where they are not, the rows
    of a group go to as few other groups as can be. Real values: each row with the one half the ranks away, and with
    its neighbour. Where the experiment has twins, they are the pairs, and rows without one are in none.
    """
    if experiment.twins is not None:
        first, second = twin_pairs(experiment.twins, rows).T
        pairs = np.arange(len(first))
        return Exchanges(
            np.concatenate([first, second]), np.concatenate([second, first]), None, np.concatenate([pairs, pairs])
        )
    rng = generator(seed, "use", "pairs")
    found = [np.zeros((0, 4), np.int64)]
    for w in np.unique(experiment.strata[rows]):
        inside = _ordered(experiment, rows[experiment.strata[rows] == w], offsets, rng)
        found += _of_classes(experiment, inside, rng) if experiment.n_classes else [_of_values(experiment, inside)]
    quads = _foreign(np.concatenate(found), experiment.groups)
    a, b, c, d = quads.T  # a and c have one value, b and d the other; the pairs are a with b, c with d
    number = np.arange(len(quads))
    return Exchanges(
        np.concatenate([a, b, c, d]), np.concatenate([b, a, d, c]), np.concatenate([c, d, a, b]), np.tile(number, 4)
    )


def _ordered(e: Experiment, rows: Ints, offsets: Ints | None, rng: np.random.Generator) -> Ints:
    """Return rows in random order, those of a group together; or by offset, where groups are small."""
    rows = rng.permutation(rows)
    own = np.unique(e.groups[rows], return_inverse=True)[1].reshape(-1)
    if offsets is not None and len(rows) <= SMALL_GROUPS * (int(own.max()) + 1):
        return np.asarray(rows[np.argsort(offsets[rows], kind="stable")])
    place = rng.permutation(int(own.max()) + 1)
    return np.asarray(rows[np.argsort(place[own], kind="stable")])


def _of_classes(e: Experiment, rows: Ints, rng: np.random.Generator) -> list[Ints]:
    """Return sets `(m, 4)` of each two classes among the rows of a stratum and fold."""
    classes, z = np.unique(e.z[rows], return_inverse=True)
    of_class = [rows[z == k] for k in range(len(classes))]
    counts = allotted(np.array([len(own) for own in of_class]), rng)
    used, found = np.zeros(len(classes), np.int64), []
    for a in range(len(classes)):
        for b in range(a + 1, len(classes)):
            m = int(counts[a, b])
            first, second = (of_class[k][used[k] : used[k] + m] for k in (a, b))
            used[[a, b]] += m
            half = m // 2
            found.append(np.stack([first[:half], second[half:], first[half:], second[:half]], axis=1))
    return found


def allotted(sizes: Ints, rng: np.random.Generator) -> Ints:
    """Return even numbers of pairs between classes of these sizes, `(K, K)`: in proportion to the product of two sizes.

    As large as the rows allow: a class of N_k rows has all but at most a few of them in pairs, the largest as many as
    there are partners.
    """
    total, most = int(sizes.sum()), int(sizes.max())
    if len(sizes) < 2 or most == total:
        return np.zeros((len(sizes), len(sizes)), np.int64)
    wanted = np.outer(sizes, sizes) / (total - int(sizes.min()))
    np.fill_diagonal(wanted, 0.0)
    counts = 2 * np.floor(wanted / 2).astype(np.int64)
    left = sizes - counts.sum(1)
    # What is left goes, two rows at a time, from the class that has most of it to the one it lacks most of; by chance
    # between those that lack alike, so that pairs of rare classes are not starved.
    open_ = left >= 2
    while open_.sum() > 1:
        a = int(np.argmax(np.where(open_, left / sizes, -1.0)))
        lacking = np.where(open_, (wanted[a] - counts[a]) / 2 + rng.random(len(sizes)), -np.inf)
        lacking[a] = -np.inf
        b = int(lacking.argmax())
        if lacking[b] > 0:
            counts[[a, b], [b, a]] += 2
            left[[a, b]] -= 2
            open_ &= left >= 2
        else:
            open_[a] = False  # it has had its share of all others
    return counts


def _of_values(e: Experiment, rows: Ints) -> Ints:
    """Return sets `(m, 4)` of real values: rows half the ranks apart, and their neighbours in rank."""
    order = rows[np.argsort(e.z[rows], kind="stable")]
    half = len(order) // 4 * 2
    low, high = order[:half], order[len(order) - half :]
    quads = np.stack([low[::2], high[::2], low[1::2], high[1::2]], axis=1)
    apart = (e.z[quads[:, 0]] != e.z[quads[:, 1]]) & (e.z[quads[:, 2]] != e.z[quads[:, 3]])
    return np.asarray(quads[apart])


def _foreign(quads: Ints, groups: Ints) -> Ints:
    """Return the sets in which no row takes a state of its own group, unless there is no such set."""
    own = groups[quads]
    partners = ((0, 1), (2, 3), (0, 2), (1, 3))
    kept = np.all([own[:, i] != own[:, j] for i, j in partners], axis=0)
    return np.asarray(quads[kept]) if kept.any() else quads
