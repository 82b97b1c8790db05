"""Many tests of one property at once: max-T over statistics, edits and places by one shared multiplier bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probing.seeds import generator
from probing.use.inference import Estimate

DRAWS = 20_000


def max_t(estimates: Sequence[Estimate], two_sided: Sequence[bool], *, seed: int, draws: int = DRAWS) -> list[float]:
    """Return adjusted p values, single step: how often the largest of all under the null is as large.

    With normal multipliers by group the bootstrap's draws are normal with the correlations of the groups' influence
    values, so they are drawn as such, over the root of a χ² / df where there are few groups.

    References:
        Westfall and Young 1993; Chernozhukov, Chetverikov and Kato 2013, Gaussian approximations and multiplier
        bootstrap for maxima of sums, §3.
    """
    live = [i for i, e in enumerate(estimates) if e.error > 0 and (e.by_group != 0).any()]
    adjusted = [
        0.0 if math.isinf(e.t) and (e.t > 0 or sides) else 1.0 for e, sides in zip(estimates, two_sided, strict=True)
    ]
    if not live:
        return adjusted
    rng = generator(seed, "use", "max-T")
    drawn = _root([estimates[i] for i in live]) @ rng.standard_normal((draws, len(live))).T
    for one, i in zip(drawn, live, strict=True):
        if two_sided[i]:
            np.abs(one, out=one)
    largest = drawn.max(0)
    df = min(estimates[i].df for i in live)
    if math.isfinite(df):
        largest /= np.sqrt(rng.chisquare(df, draws) / df)
    for i in live:
        found = abs(estimates[i].t) if two_sided[i] else estimates[i].t
        adjusted[i] = float((1 + (largest >= found).sum()) / (1 + draws))
    return adjusted


def _root(estimates: Sequence[Estimate]) -> NDArray[np.float64]:
    rows = np.stack([e.by_group / np.linalg.norm(e.by_group) for e in estimates])
    values, vectors = np.linalg.eigh(rows @ rows.T)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
