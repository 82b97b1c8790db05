"""Linear readers of states that need no iterations: fitted from sums over rows, which add up over folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.use.contrasts import sums_by

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over rows of states less an origin; those of one origin can be added.

    Attributes:
        origin: `(D,)`, near the mean, so that large offsets cost no digits.
        counts: `(K,)` rows of each class; of real values `(1,)`: all rows.
        sums: `(K, D)` of each class; of real values `(1, D)`.
        products: `(D, D)`.
        along: Σ z h `(D,)` and Σ z of real values; None: classes.
    """

    origin: Floats
    counts: NDArray[np.int64]
    sums: Floats
    products: Floats
    along: tuple[Floats, float] | None = None

    @classmethod
    def of(cls, states: Floats, z: NDArray[Any], n_classes: int, origin: Floats | None = None) -> Moments:
        """Return the sums over `(n, D)` states with classes 0 … K-1, or real values where `n_classes` is 0."""
        origin = states.mean(0) if origin is None else origin
        centred = states - origin
        products = centred.T @ centred
        if n_classes:
            counts = np.bincount(z, minlength=n_classes)
            return cls(origin, counts, sums_by(z, centred, n_classes), products)
        total = centred.sum(0)[None, :]
        return cls(origin, np.array([len(z)]), total, products, (z @ centred, float(z.sum())))

    def __add__(self, other: Moments) -> Moments:
        along = None
        if self.along is not None and other.along is not None:
            along = self.along[0] + other.along[0], self.along[1] + other.along[1]
        return Moments(
            self.origin, self.counts + other.counts, self.sums + other.sums, self.products + other.products, along
        )

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    @property
    def offset(self) -> Floats:
        """Mean of all rows, less the origin, `(D,)`."""
        return np.asarray(self.sums.sum(0) / self.n)

    @property
    def spread(self) -> Floats:
        """Sums of products about the mean, `(D, D)`."""
        return self.products - self.n * np.outer(self.offset, self.offset)


class Discriminant:
    """Gaussian classes with a shared covariance: the linear probe that needs no iterations. For real values, ridge
    regression.

    References:
        Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, §4.3.
    """

    def __init__(self, fitted: Moments) -> None:
        spread, offset = fitted.spread, fitted.offset
        self._is_real = fitted.along is not None
        if fitted.along is not None:
            by_z, total = fitted.along
            self._weights = np.linalg.solve(_ridged(spread, 1e-3), by_z - total * offset)[:, None]
            bias = np.array([total / fitted.n])
        else:
            counts = np.maximum(fitted.counts, 1e-9)
            means = np.where(fitted.counts[:, None] > 0, fitted.sums / counts[:, None] - offset, 0.0)
            within = (spread - (means.T * counts) @ means) / fitted.n
            self._weights = np.linalg.solve(_ridged(within, 1e-3), means.T)
            bias = np.log(counts / counts.sum()) - 0.5 * np.einsum("kd,dk->k", means, self._weights)
        self._bias = bias - (fitted.origin + offset) @ self._weights

    def predict(self, states: Floats) -> Floats:
        """Return the probabilities `(n, K)`, or the predicted values `(n, 1)`."""
        scores = self._weights.T @ states.T + self._bias[:, None]  # K first: sums over few classes are then long ones
        if not self._is_real:
            scores -= scores.max(0)
            np.exp(scores, out=scores)
            scores /= scores.sum(0)
        return np.asarray(scores.T)


class Mahalanobis:
    """Measures squared Mahalanobis distances from the mean of the fitted rows."""

    def __init__(self, fitted: Moments) -> None:
        cov = _ridged(fitted.spread / max(1, fitted.n - 1), 1e-6)
        self._root = np.linalg.inv(np.linalg.cholesky(cov))
        self._centre = self._root @ (fitted.origin + fitted.offset)

    def __call__(self, states: Floats) -> Floats:
        """Return the distances of `(n, D)` states, `(n,)`."""
        whitened = states @ self._root.T
        whitened -= self._centre
        return np.asarray(np.einsum("nd,nd->n", whitened, whitened))


def _ridged(spread: Floats, share: float) -> Floats:
    """Add a share of the mean variance to the diagonal, in place."""
    spread[np.diag_indices_from(spread)] += share * np.trace(spread) / len(spread) + 1e-12
    return spread
