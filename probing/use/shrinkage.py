"""Linear readers of states that may be wider than rows: shrinkage and temperature are chosen inside the fit folds.

With N rows of D > N coordinates the pooled covariance is singular, and a discriminant that believes it is sure and
wrong. So it is shrunk towards its diagonal, and its scores are multiplied by a temperature. Both are chosen by what
readers of one fit fold say of the other, so that neither sees the fold that is predicted, and no group is on both
sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from probing.use.discriminant import Moments
from probing.use.experiment import FOLDS, Experiment
from probing.use.fold_states import FoldStates

SHRINKAGES = (0.003, 0.03, 0.2, 0.8)
_CALIBRATION_ROWS = 512  # at most, of each fold: one temperature needs no more
_VARIANCE_FLOOR = 1e-6  # share of the mean variance, so that a coordinate that is constant within classes stays finite
_MANY = 20  # groups a coordinate, of a fit fold
_STEPS, _TOLERANCE = 20, 1e-3

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions of a reader for the rows of a fold that it was not fitted on.

    Attributes:
        scores: `(n, K)` log odds over the prior before calibration; of real values `(n, 1)` distances from the mean.
        temperature: by which scores are multiplied, at least 0.
        prior: `(K,)` frequencies of all rows; of real values `(1,)`: their mean. Those of the fit folds alone would
            lean away from the fold that is predicted: classes that are even over all rows are uneven in both parts,
            in opposite ways, and any reader would seem to know more.
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
        """Scores less their mean under the prior, of root mean square 1: calibration does not affect them."""
        if len(self.prior) == 1:
            return np.asarray(self.scores / (np.sqrt((self.scores**2).mean()) + 1e-300))
        centred = self.scores - (self.scores @ self.prior)[:, None]
        return np.asarray(centred / (np.sqrt((centred**2 @ self.prior).mean()) + 1e-300))

    @property
    def values(self) -> Floats:
        """Predicted real values, `(n,)`."""
        return np.asarray(self.prior[0] + self.temperature * self.scores[:, 0])


class ShrunkDiscriminant:
    """Gaussian classes with a shared covariance, shrunk towards its diagonal; for real values, the regression of that
    kind.

    With S the covariance within classes, d the roots of its diagonal and R = S / d dᵀ, weights are
    d⁻¹ ((1−λ) R + λ I)⁻¹ d⁻¹ (class means). Fewer rows than coordinates are solved in the space of rows (Woodbury).

    Args:
        fitted: sums over the rows.
        blocks: the rows themselves, `(n_b, D)` each.
        z: `(n_b,)` of each block.

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
        """Return weights `(D, K)` and biases `(K,)`, without the prior."""
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
    """Return predictions of calibrated linear readers for each fold, fitted on the other two."""
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
    """Return the best temperature for each of L sets of scores `(L, n, K)`, and the mean log-likelihood it reaches,
    `(L,)`.

    A penalty of t²/2n, for scores of unit size, keeps temperatures finite where classes separate. Of real values:
    least squares between 0 and 1, and minus the mean squared error.

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
