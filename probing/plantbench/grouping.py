"""Groups of tier 0: rows that are not independent, in groups of equal, mixed or very uneven size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probing.plantbench.knobs import Knobs

Ints = NDArray[np.int64]


def groups_of(knobs: Knobs, n: int, rng: np.random.Generator) -> Ints:
    """Return the codes 0 … G-1 of groups, `(n,)`, each group in one piece, as the knobs have it; `rng` draws sizes that
    vary.
    """
    if knobs.grouping == "equal":
        return np.arange(n) // knobs.group_size
    if knobs.grouping == "mixed":
        sizes = rng.integers(1, knobs.largest + 1, n)  # more than enough
        return np.repeat(np.arange(n), sizes)[:n]
    documents = min(knobs.documents, n)
    if knobs.grouping == "zipf":
        shares = zipf_shares(documents, knobs.tail)
    else:
        drawn = np.exp(knobs.spread * rng.standard_normal(documents))
        shares = drawn / drawn.sum()
    return np.repeat(np.arange(documents), _whole(shares, n))


def zipf_shares(k: int, tail: float) -> NDArray[np.float64]:
    """Return `(k,)` shares proportional to 1, 1/2, 1/3 … to the power of `tail`."""
    shares = np.arange(1, k + 1) ** -tail
    return np.asarray(shares / shares.sum())


def effective(groups: Ints) -> float:
    """Return how many equal groups the groups are worth: (Σ m)² / Σ m² of their sizes m."""
    sizes = np.bincount(groups).astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _whole(shares: NDArray[np.float64], n: int) -> Ints:
    """Return whole sizes of at least 1 that are as nearly proportional to the shares as can be and sum to n."""
    wanted = shares * (n - len(shares))
    sizes = np.floor(wanted).astype(np.int64)
    most = np.argsort(sizes - wanted, kind="stable")[: n - len(shares) - int(sizes.sum())]
    sizes[most] += 1
    return sizes + 1
