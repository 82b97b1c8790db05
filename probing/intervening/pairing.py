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
    found: list[tuple[int, int]] = []
    for w in np.unique(experiment.strata[rows]):
        inside = rng.permutation(rows[experiment.strata[rows] == w])
        if not experiment.n_classes:
            order = inside[np.argsort(experiment.z[inside], kind="stable")]
            half = len(order) // 2
            found += [(int(a), int(b)) for a, b in zip(order[:half], order[half : 2 * half], strict=True)
                      if experiment.z[a] != experiment.z[b]]  # fmt: skip
            continue
        left = inside
        if offsets is not None:
            for offset in np.unique(offsets[inside]):
                here = left[offsets[left] == offset]
                pairs = _between_classes(here, experiment.z)
                found += pairs
                left = np.setdiff1d(left, np.array(pairs, np.int64).reshape(-1), assume_unique=True)
            left = rng.permutation(left)
        found += _between_classes(left, experiment.z)
    return np.array(found, np.int64).reshape(-1, 2)


def _between_classes(rows: Ints, z: NDArray[Any]) -> list[tuple[int, int]]:
    queues = {k: rows[z[rows] == k].tolist() for k in np.unique(z[rows]).tolist()}
    if len(queues) == 2:  # the larger stays the larger
        more, less = sorted(queues, key=lambda k: (-len(queues[k]), k))
        return list(zip(queues[more][::-1], queues[less][::-1], strict=False))
    pairs: list[tuple[int, int]] = []
    while True:
        filled = sorted((k for k, queue in queues.items() if queue), key=lambda k: (-len(queues[k]), k))
        if len(filled) < 2:
            return pairs
        pairs.append((queues[filled[0]].pop(), queues[filled[1]].pop()))
