"""Exchanges: chooses, for rows of a fold, a donor of states with another value of the property, and one with the same
value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.seeds import generator
from probing.use.contrasts import twin_pairs
from probing.use.experiment import Experiment

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SMALL_GROUPS = 2  # rows of a group on average, up to which rows are ordered by place in the text, not by group


@dataclass(frozen=True, eq=False)
class Exchanges:
    """Lists exchanges of states among n rows of one fold.

    Rows are in closed sets of four: two rows of one value and two of another. Each row gets the state of a row of the
    other value and, in a second run, that of the other row of its own value. Any foreign state may disturb a model, so
    the effect of the value is the difference between the two runs. Sets have no rows in common, so each is an
    independent observation (except for shared groups).

    Attributes:
        own: `(n,)` rows of the experiment that are edited, each once.
        donor: `(n,)` rows of another value whose states they get.
        alike: `(n,)` rows of the same value whose states they get in the second run; None: donors are twins, which
            differ in nothing else, so that no second run is needed.
        sets: `(n,)` codes of the closed sets; each pair of twins is one.
    """

    own: Ints
    donor: Ints
    alike: Ints | None
    sets: Ints

    def again(self, least: int, share: float, rng: np.random.Generator) -> Ints:
        """Choose the rows for the second run and return their indices: those of a random `share` of the sets, but of at
        least `least` sets if there are that many.

        Within a set, rows of one value exchange states with each other, so the sum over a set hardly varies, and a few
        sets are enough to estimate the mean.
        """
        n_sets = int(self.sets.max(initial=-1)) + 1
        chosen = rng.permutation(n_sets)[: max(least, math.ceil(share * n_sets))]
        return np.flatnonzero(np.isin(self.sets, chosen))


def exchanges(experiment: Experiment, rows: Ints, *, seed: int, offsets: Ints | None = None) -> Exchanges:
    """Choose exchanges among `rows` (of one fold) within strata, and return them.

    Every class is divided into parts, one for each other class, in proportion to the size of that class, so that each
    pair of classes has as many exchanges as its rows allow and none rests on few rows. Both donors of a row are of
    other groups than the row (unless a fold has no such exchanges), so that both are equally foreign. If groups are
    small, donors at the same offset (`(n,)`, of all rows of the experiment) are preferred; otherwise the rows of a
    group exchange with as few other groups as possible. For real values, a row is paired with the row half the ranks
    away, and with its neighbour. If the experiment has twins, they are the pairs, and other rows are not used.
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
    """Return how many pairs of rows to form between each two classes, `(K, K)` even numbers, about in proportion to the
    product of their sizes.

    The numbers are as large as possible: all but a few rows of each class are used, those of the largest class as far
    as there are partners.
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
