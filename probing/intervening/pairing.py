"""Reciprocal pairs: rows of one fold and stratum that exchange their states, each of another value than its partner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.intervening.experiment import Experiment
from probing.intervening.twins import twin_pairs
from probing.seeds import generator

Ints = NDArray[np.int64]


def reciprocal_pairs(experiment: Experiment, rows: Ints, *, seed: int, offsets: Ints | None = None) -> Ints:
    """`(m, 2)` disjoint pairs among `rows` (of one fold).

    Classes: the two largest classes left in a stratum give a pair until one class is left; rows at the same offset
    (`(n,)`, of all rows of the experiment) first. Real values: each with the row half the ranks away. Where the
    experiment has twins, they are the pairs, and rows without one are in none.
    """
    if experiment.twins is not None:
        return twin_pairs(experiment.twins, rows)
    rng = generator(seed, "use", "pairs")
    found: list[Ints] = [np.zeros((0, 2), np.int64)]
    for w in np.unique(experiment.strata[rows]):
        inside = rng.permutation(rows[experiment.strata[rows] == w])
        if not experiment.n_classes:
            order = inside[np.argsort(experiment.z[inside], kind="stable")]
            half = len(order) // 2
            pairs = np.stack([order[:half], order[half : 2 * half]], axis=1)
            found.append(pairs[experiment.z[pairs[:, 0]] != experiment.z[pairs[:, 1]]])
            continue
        left = inside
        if offsets is not None:
            for offset in np.unique(offsets[inside]):
                here = left[offsets[left] == offset]
                pairs = _between_classes(here, experiment.z)
                found.append(pairs)
                left = np.setdiff1d(left, pairs.reshape(-1), assume_unique=True)
            left = rng.permutation(left)
        found.append(_between_classes(left, experiment.z))
    return np.concatenate(found)


def _between_classes(rows: Ints, z: NDArray[Any]) -> Ints:
    """`(m, 2)` pairs, from the ends of the classes' rows."""
    classes = z[rows]
    of_class = {k: rows[classes == k] for k in np.flatnonzero(np.bincount(classes)).tolist()}
    if len(of_class) == 2:  # the larger stays the larger
        more, less = sorted(of_class.values(), key=len, reverse=True)
        return np.stack([more[::-1][: len(less)], less[::-1]], axis=1)
    queues = {k: own.tolist() for k, own in of_class.items()}
    pairs: list[tuple[int, int]] = []
    while True:
        filled = sorted((k for k, queue in queues.items() if queue), key=lambda k: (-len(queues[k]), k))
        if len(filled) < 2:
            return np.array(pairs, np.int64).reshape(-1, 2)
        pairs.append((queues[filled[0]].pop(), queues[filled[1]].pop()))
