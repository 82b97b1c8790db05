"""Turns scores into probabilities: one temperature and an intercept a class, by Newton's method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

Matrix = NDArray[np.float64]
_STEPS = 100
_HALVINGS = 30
_TOLERANCE = 1e-10
_LEAST = 1e-6  # a temperature of 0 would make all classes alike


@dataclass(frozen=True)
class Calibration:
    """Maps scores to logits `temperature · score + intercept`; `intercept` is `(K,)`, of mean 0."""

    temperature: float
    intercept: Matrix
    converged: bool


def calibrate(scores: Matrix, codes: NDArray[np.int64]) -> Calibration:
    """Minimise mean log loss + 1/(2N) (t² + ‖b - b₀‖²), t for scores of unit variance, b₀ the log class frequencies.

    The penalty keeps the temperature finite where the classes separate. With scores `M (μₖ - μ̄)·x` the temperature is
    never negative, since the gradient at 0 is minus the scatter of the class means.

    Args:
        scores: `(N, K)` float64.
        codes: `(N,)` in 0 … K-1; every class occurs.

    References:
        Guo et al. 2017, *On calibration of modern neural networks*, §4.2 (there without intercepts, on held-out rows).
    """
    n, k = scores.shape
    spread = float(scores.std()) or 1.0
    features = (scores - scores.mean(0)) / spread
    prior = np.log(np.bincount(codes, minlength=k) / n)
    theta = np.concatenate([[0.0], prior])
    loss, gradient, hessian = _model(theta, features, codes, prior)
    converged = False
    for _ in range(_STEPS):
        step = -np.linalg.solve(hessian, gradient)
        slope = float(gradient @ step)
        if -slope <= _TOLERANCE * max(loss, 1e-3):
            converged = True
            break
        size = 1.0
        for _ in range(_HALVINGS):
            found = _model(theta + size * step, features, codes, prior)
            if found[0] <= loss + 1e-4 * size * slope:
                break
            size /= 2
        else:
            converged = True  # nothing more to gain in this precision
            break
        theta = theta + size * step
        loss, gradient, hessian = found
    temperature = max(0.0, float(theta[0])) / spread
    intercept = theta[1:] - temperature * scores.mean(0)
    return Calibration(temperature, intercept - intercept.mean(), converged)


def calibrate_temperature(scores: Matrix, offsets: Matrix, codes: NDArray[np.int64]) -> Calibration:
    """Minimise mean log loss + t²/(2N) over t alone, for logits `t · (score + offset)`: the largest logit stays it.

    Args:
        scores: `(N, K)` float64.
        offsets: `(K,)`.
        codes: `(N,)` in 0 … K-1.
    """
    shifted = scores + offsets
    n, spread = len(scores), float((scores + offsets).std()) or 1.0
    features = shifted / spread
    rows = np.arange(n)
    t, converged = 0.0, False
    for _ in range(_STEPS):
        p = np.exp(log_softmax(t * features, axis=1))
        mean = np.einsum("nk,nk->n", p, features)
        slope = float((mean - features[rows, codes]).mean()) + t / n
        curvature = float((np.einsum("nk,nk->n", p, features**2) - mean**2).mean()) + 1 / n
        step = max(-slope / curvature, -0.5 * t)  # never below 0
        t += step
        if abs(step) <= 1e-8 * max(1.0, t):
            converged = True
            break
    temperature = max(t, _LEAST) / spread
    intercept = temperature * offsets
    return Calibration(temperature, intercept - intercept.mean(), converged)


def _model(theta: Matrix, features: Matrix, codes: NDArray[np.int64], prior: Matrix) -> tuple[float, Matrix, Matrix]:
    """Return objective, gradient `(1+K,)` and Hessian `(1+K, 1+K)` in (t, b)."""
    n, k = features.shape
    logs = log_softmax(theta[0] * features + theta[1:], axis=1)
    p = np.exp(logs)
    away = np.concatenate([theta[:1], theta[1:] - prior])
    loss = -float(logs[np.arange(n), codes].mean()) + 0.5 * float(away @ away) / n
    mean = np.einsum("nk,nk->n", p, features)
    chosen = features[np.arange(n), codes]
    gradient = np.concatenate([[float((mean - chosen).mean())], p.mean(0) - np.bincount(codes, minlength=k) / n])
    hessian = np.empty((k + 1, k + 1))
    hessian[0, 0] = float((np.einsum("nk,nk->n", p, features**2) - mean**2).mean())
    hessian[0, 1:] = hessian[1:, 0] = (p * (features - mean[:, None])).mean(0)
    hessian[1:, 1:] = np.diag(p.mean(0)) - p.T @ p / n
    return loss, gradient + away / n, hessian + np.eye(k + 1) / n
