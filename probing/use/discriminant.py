"""Linear probes in closed form, fitted from sums over rows, with and without shrinkage; and the sums of each fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from probing.use.contrasts import sums_by
from probing.use.experiment import FOLDS, Experiment

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Holds sums over rows of states minus an origin; moments with the same origin can be added.

    Attributes:
        origin: `(D,)` vector near the mean, so that large offsets do not lose digits.
        counts: `(K,)` number of rows of each class; for real values `(1,)`, of all rows.
        sums: `(K, D)` sums of each class; for real values `(1, D)`.
        products: `(D, D)` sums of products.
        along: for real values, Σ z h `(D,)` and Σ z; None for classes.
    """

    origin: Floats
    counts: NDArray[np.int64]
    sums: Floats
    products: Floats
    along: tuple[Floats, float] | None = None

    @classmethod
    def of(cls, states: Floats, z: NDArray[Any], n_classes: int, origin: Floats | None = None) -> Moments:
        """Return the moments of states `(n, D)` with classes 0 … K-1, or with real values if `n_classes` is 0."""
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
        """Mean of all rows minus the origin, `(D,)`."""
        return np.asarray(self.sums.sum(0) / self.n)

    @property
    def spread(self) -> Floats:
        """Sums of products about the mean, `(D, D)`."""
        return self.products - self.n * np.outer(self.offset, self.offset)


class Discriminant:
    """A linear probe that needs no iterations: Gaussian classes with a shared covariance; for real values, ridge
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


@dataclass(frozen=True, eq=False)
class FoldStates:
    """Holds the states of an experiment's rows, by fold.

    Attributes:
        blocks: states `(n_k, D)` of each fold, float64.
        moments: moments of each fold, by the property's classes or values.
    """

    blocks: tuple[Floats, ...]
    moments: tuple[Moments, ...]

    @classmethod
    def of(cls, experiment: Experiment, states: NDArray[np.floating]) -> FoldStates:
        """Split states `(n, D)` by fold, compute their moments, and return both."""
        folds = [experiment.fold(k) for k in range(FOLDS)]
        blocks = tuple(np.asarray(states[rows], np.float64) for rows in folds)
        origin, z, n_classes = blocks[0].mean(0), experiment.z, experiment.n_classes
        moments = (Moments.of(h, z[rows], n_classes, origin) for h, rows in zip(blocks, folds, strict=True))
        return cls(blocks, tuple(moments))


SHRINKAGES = (0.003, 0.03, 0.2, 0.8)
_CALIBRATION_ROWS = 512  # at most, of each fold: one temperature needs no more
_VARIANCE_FLOOR = 1e-6  # share of the mean variance, so that a coordinate that is constant within classes stays finite
_MANY = 20  # groups a coordinate, of a fit fold
_STEPS, _TOLERANCE = 20, 1e-3


@dataclass(frozen=True, eq=False)
class Prediction:
    """Holds the predictions of a probe for the rows of a fold that it was not fitted on.

    Attributes:
        scores: `(n, K)` log odds over the prior before calibration; for real values `(n, 1)` differences from the mean.
        temperature: factor by which scores are multiplied, at least 0.
        prior: `(K,)` class frequencies in all rows; for real values `(1,)`, their mean. Frequencies in the fitting
            folds alone would be biased away from the predicted fold: a class that is rarer in one part is more frequent
            in the other, so any probe would seem better than it is.
    """

    scores: Floats
    temperature: float
    prior: Floats

    @property
    def probabilities(self) -> Floats:
        """Calibrated probabilities, `(n, K)`."""
        return np.asarray(softmax(np.log(self.prior) + self.temperature * self.scores, axis=1))

    @property
    def unit_scores(self) -> Floats:
        """Scores minus their mean under the prior, scaled to root mean square 1, so that calibration does not affect
        them.
        """
        if len(self.prior) == 1:
            return np.asarray(self.scores / (np.sqrt((self.scores**2).mean()) + 1e-300))
        centred = self.scores - (self.scores @ self.prior)[:, None]
        return np.asarray(centred / (np.sqrt((centred**2 @ self.prior).mean()) + 1e-300))

    @property
    def values(self) -> Floats:
        """Predicted real values, `(n,)`."""
        return np.asarray(self.prior[0] + self.temperature * self.scores[:, 0])


class ShrunkDiscriminant:
    """Gaussian classes with a shared covariance, shrunk towards its diagonal; for real values, the corresponding
    regression.

    With S the covariance within classes, d the roots of its diagonal and R = S / d dᵀ, weights are d⁻¹ ((1−λ) R + λ
    I)⁻¹ d⁻¹ (class means). If there are fewer rows than coordinates, the system is solved in the space of rows
    (Woodbury).

    Args:
        fitted: moments of the rows.
        blocks: the states of the rows, `(n_b, D)` each.
        z: classes or values `(n_b,)` of each block.

    References:
        Friedman 1989, Regularized discriminant analysis. Schäfer and Strimmer 2005, A shrinkage approach to
        large-scale covariance matrix estimation (shrinkage of correlations).
    """

    def __init__(self, fitted: Moments, blocks: Sequence[Floats], z: Sequence[NDArray[Any]]) -> None:
        n, offset = fitted.n, fitted.offset
        self._centre, self._is_real = fitted.origin + offset, fitted.along is not None
        counts = fitted.counts
        if fitted.along is not None:
            by_z, total = fitted.along
            means, wanted = np.zeros((1, len(offset))), (by_z - total * offset)[None] / n
        else:
            present = counts[:, None] > 0
            means = np.where(present, fitted.sums / np.maximum(counts, 1)[:, None] - offset, 0.0)
            wanted = means
        between = (means**2).T @ counts / n
        variances = np.maximum(np.diagonal(fitted.products) / n - offset**2 - between, 0.0)
        floor = _VARIANCE_FLOOR * float(variances.mean() + between.mean()) + np.finfo(np.float64).tiny
        self._scale = np.sqrt(variances + floor)
        self._wanted = (wanted / self._scale).T
        self._rows: Floats | None = None
        if n < len(offset):
            residuals = [
                h - self._centre - (0.0 if self._is_real else means[own]) for h, own in zip(blocks, z, strict=True)
            ]
            self._rows = np.concatenate(residuals) / self._scale
            self._matrix = self._rows @ self._rows.T / n
        else:
            within = fitted.spread / n - (means.T * counts) @ means / n
            self._matrix = within / np.outer(self._scale, self._scale)

    def weights(self, shrinkage: float) -> tuple[Floats, Floats]:
        """Return the weights `(D, K)` and biases `(K,)` of the scores, to which the log prior is still to be added."""
        matrix, diagonal = (1 - shrinkage) * self._matrix, np.diag_indices_from(self._matrix)
        matrix[diagonal] += shrinkage
        if self._rows is None:
            solved = np.linalg.solve(matrix, self._wanted)
        else:
            inside = np.linalg.solve(matrix, self._rows @ self._wanted) * (1 - shrinkage) / len(self._rows)
            solved = (self._wanted - self._rows.T @ inside) / shrinkage
        bias = np.zeros(solved.shape[1]) if self._is_real else -0.5 * np.einsum("dk,dk->k", self._wanted, solved)
        weights = solved / self._scale[:, None]
        return weights, bias - self._centre @ weights


def linear_predictions(e: Experiment, states: FoldStates) -> list[Prediction]:
    """Fit calibrated linear probes on two folds each, and return their predictions for the third."""
    z = [e.z[e.fold(k)] for k in range(FOLDS)]
    alone = [ShrunkDiscriminant(states.moments[k], [states.blocks[k]], [z[k]]) for k in range(FOLDS)]
    grid = _grid(e, states.blocks[0].shape[1])
    paths = [[one.weights(shrinkage) for shrinkage in grid] for one in alone]
    prior, found = prior_of(e.z, e.n_classes), []
    for k in range(FOLDS):
        fit = [j for j in range(FOLDS) if j != k]
        inner, inner_z = [], []
        for j, other in (fit, fit[::-1]):
            chosen = _spaced(len(z[other]))
            inner.append(np.stack([_scores(states.blocks[other][chosen], *one) for one in paths[j]]))
            inner_z.append(z[other][chosen])
        fits = temperatures(np.concatenate(inner, axis=1), np.concatenate(inner_z), prior, e.n_classes)
        best = int(np.argmax(fits[1]))
        both = ShrunkDiscriminant(
            states.moments[fit[0]] + states.moments[fit[1]], [states.blocks[j] for j in fit], [z[j] for j in fit]
        )
        scores = _scores(states.blocks[k], *both.weights(grid[best]))
        found.append(Prediction(scores, float(fits[0][best]), prior))
    return found


def _grid(e: Experiment, width: int) -> tuple[float, ...]:
    """Return shrinkages to choose from: the least alone where independent groups are so many that none is needed."""
    fewest = min(len(np.unique(e.groups[e.fold(k)])) for k in range(FOLDS))
    return SHRINKAGES[:1] if fewest >= _MANY * width else SHRINKAGES


def prior_of(z: NDArray[Any], n_classes: int) -> Floats:
    """Return the frequencies of classes, `(K,)`; for real values the mean, `(1,)`."""
    return np.asarray(np.bincount(z, minlength=n_classes) / len(z) if n_classes else [z.mean()])


def temperatures(scores: Floats, z: NDArray[Any], prior: Floats, n_classes: int) -> tuple[Floats, Floats]:
    """Return the best temperature for each of L sets of scores `(L, n, K)`, and the mean log-likelihood that it
    reaches, `(L,)`.

    A penalty of t²/2n, for scores of unit size, keeps temperatures finite if classes are separable. For real values it
    is the least-squares factor between 0 and 1, and minus the mean squared error.

    References:
        Guo et al. 2017, On calibration of modern neural networks, §4.2.
    """
    n = len(z)
    if not n_classes:
        said, away = scores[..., 0], z - prior[0]
        slopes = np.clip(said @ away / np.maximum((said**2).sum(1), 1e-300), 0.0, 1.0)
        return slopes, -((away - slopes[:, None] * said) ** 2).mean(1)
    scores = scores.transpose(0, 2, 1)  # K before n: sums over few classes are then of long rows
    scores = scores - (prior @ scores)[:, None]
    size = np.sqrt((prior @ scores**2).mean(1)) + 1e-300
    scores /= size[:, None, None]
    logs, t = np.log(prior)[:, None], np.zeros(len(scores))
    own, rows = scores[:, z, np.arange(n)], np.arange(n)
    for _ in range(_STEPS):
        p = np.exp(logs + t[:, None, None] * scores)
        p /= p.sum(1, keepdims=True)
        weighed = p * scores
        mean = weighed.sum(1)
        slope = (own - mean).mean(1) - t / n
        curvature = (weighed * scores).sum((1, 2)) / n - (mean**2).mean(1) + 1 / n
        before, t = t, np.clip(t + slope / curvature, 0.5 * t, 2 * t + 1.0)
        if np.abs(t - before).max() < _TOLERANCE:
            break
    p = np.exp(logs + t[:, None, None] * scores)
    likelihood = np.log(np.maximum(p[:, z, rows] / p.sum(1), 1e-300)).mean(1)
    none = float(logs[z].mean())
    return np.where(likelihood > none, t, 0.0) / size, np.maximum(likelihood, none)


def _scores(states: Floats, weights: Floats, bias: Floats) -> Floats:
    return np.asarray(states @ weights + bias)


def _spaced(n: int) -> NDArray[np.int64]:
    return np.linspace(0, n - 1, min(n, _CALIBRATION_ROWS)).astype(np.int64)
