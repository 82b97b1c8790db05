"""States that are sparse sums of known directions: Zipf firing, hierarchy and correlation; and how well a dictionary
recovers the directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float32]
RECOVERED = 0.9  # least |cos| at which a feature counts as recovered


@dataclass(frozen=True)
class PlantedStates:
    """Holds N states of width D that are sums of few of F known unit directions, and noise.

    Attributes:
        states: `(N, D)` float32.
        features: `(F, D)` unit directions.
        strengths: `(N, F)` strength of each feature in each state, 0 where it does not fire.
    """

    states: Floats
    features: Floats
    strengths: Floats

    @property
    def l0(self) -> float:
        """Mean number of features that fire in a state."""
        return float((self.strengths > 0).sum(1).mean())


def planted_states(
    rows: int,
    *,
    width: int = 32,
    features: int = 64,
    l0: float = 4.0,
    zipf: float = 0.7,
    children: float = 0.25,
    correlation: float = 0.5,
    noise: float = 0.02,
    seed: int = 0,
) -> PlantedStates:
    """Return planted states.

    Args:
        rows, width, features: N, D and F.
        l0: mean number of features that fire, about.
        zipf: exponent: the feature of rank r fires with a probability proportional to r to the power −zipf.
        children: share of features that fire only where their parent does (hierarchy).
        correlation: latent correlation of neighbouring features of a group of four.
        noise: standard deviation of the noise, relative to the mean strength of 1, on every coordinate.
        seed: seed of all draws.
    """
    random = np.random.default_rng(seed)
    directions = random.standard_normal((features, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chance = np.arange(1, features + 1.0) ** -zipf
    chance = np.minimum(chance * l0 / chance.sum(), 0.5)
    parents = np.full(features, -1)
    young = np.arange(features - int(children * features), features)
    parents[young] = random.integers(0, features // 4, len(young))  # frequent features have rare children
    shared = random.standard_normal((rows, -(-features // 4)))
    own = random.standard_normal((rows, features))
    groups = random.permutation(features) // 4
    level = np.sqrt(correlation) * shared[:, groups] + np.sqrt(1 - correlation) * own
    given = np.where(parents >= 0, np.minimum(chance / np.maximum(chance[parents], 1e-9), 0.7), chance)
    fires = level > _quantile(1 - given)
    for child in young:
        fires[:, child] &= fires[:, parents[child]]
    strengths = np.where(fires, 0.5 + random.exponential(0.5, fires.shape), 0.0)
    states = strengths @ directions + noise * random.standard_normal((rows, width))
    return PlantedStates(states.astype(np.float32), directions.astype(np.float32), strengths.astype(np.float32))


def _quantile(share: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import ndtri

    return np.asarray(ndtri(share))


def matched(features: Floats, directions: Floats) -> Floats:
    """Return |cos| `(F,)` of each feature and the direction that it is matched with, one to one, for the largest sum
    (Hungarian matching); 0 for features without one.
    """
    unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    likeness = np.abs(features @ unit.T)
    rows, columns = linear_sum_assignment(likeness, maximize=True)
    found = np.zeros(len(features), np.float32)
    found[rows] = likeness[rows, columns]
    return found


def interval(values: Floats, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over features."""
    random = np.random.default_rng(seed)
    means = values[random.integers(0, len(values), (resamples, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
