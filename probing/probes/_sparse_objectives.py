"""The losses that sparse probes minimise (slopes, curvature, refits), and the selection of coordinates by them.

Weights are `(D, K)` on standardised states and intercepts `(K,)`; K is 1 for a real target. Slopes are those of the
mean loss without the penalty; refits add ½ λ ‖W‖².
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from torch import Tensor

Matrix = NDArray[np.float64]
_REFIT_STEPS = 25
_MEMORY = 8
_REFIT_TOLERANCE = 3e-5
_HALVINGS = 12


@dataclass(frozen=True)
class Slope:
    """Holds the mean loss at one point, its derivatives by the weights `(D, K)` and intercepts `(K,)`, and its
    curvature over outputs `(K, K)`.

    For a small change Δ of the weights the loss is approximately `loss + ⟨weights, Δ⟩ + ½ tr(Δᵀ A Δ C)`, with A the
    correlations of the columns and C the curvature.
    """

    loss: float
    weights: Matrix
    intercept: Matrix
    curvature: Matrix


@dataclass(frozen=True)
class Fit:
    """Holds weights `(s, K)` on the s chosen columns, and intercepts `(K,)`."""

    weights: Matrix
    intercept: Matrix


class Objective(ABC):
    """A mean loss over N rows with D columns and K outputs.

    Attributes:
        correlations: `(D, D)`, `XᵀX / N`.
        outputs: K.
        penalty: λ of refits.
    """

    correlations: Matrix
    outputs: int
    penalty: float

    @abstractmethod
    def slope(self, columns: Sequence[int], fit: Fit) -> Slope:
        """Return the loss, its slopes in all D columns, and its curvature, at a fit whose weights are on `columns`
        only.
        """

    @abstractmethod
    def refit(self, columns: Sequence[int], start: Fit) -> Fit:
        """Minimise the penalised loss over the weights of `columns` and the intercepts, starting from `start`, and
        return the fit.
        """


class SquaredLoss(Objective):
    """Half the mean squared error, computed from `XᵀX` and `Xᵀy` alone. Targets have mean 0."""

    def __init__(self, correlations: Matrix, products: Matrix, square: float, penalty: float) -> None:
        """Keep the sums over rows: `products` is `Xᵀy / N` `(D, 1)`, `square` is `yᵀy / N`."""
        self.correlations, self.penalty, self.outputs = correlations, penalty, 1
        self._products, self._square = products, square

    def slope(self, columns: Sequence[int], fit: Fit) -> Slope:
        """Return the slopes as `Objective.slope` does."""
        fitted = self.correlations[:, list(columns)] @ fit.weights
        own = fitted[list(columns)] - 2 * self._products[list(columns)]
        loss = 0.5 * (self._square + float((fit.weights * own).sum()))
        return Slope(loss, fitted - self._products, np.zeros(1), np.ones((1, 1)))

    def refit(self, columns: Sequence[int], start: Fit) -> Fit:
        """Refit as `Objective.refit` does, in closed form."""
        chosen = list(columns)
        gram = self.correlations[np.ix_(chosen, chosen)] + (self.penalty + 1e-9) * np.eye(len(chosen))
        return Fit(cho_solve(cho_factor(gram), self._products[chosen]), np.zeros(1))


class LogLoss(Objective):
    """Mean log loss of a softmax, in nats. Arithmetic is in the dtype of `rows`, sums of losses in float64."""

    def __init__(self, rows: Tensor, codes: Tensor, classes: int, correlations: Matrix, penalty: float) -> None:
        """Keep the rows: `rows` are `(N, D)` standardised, `codes` `(N,)`."""
        self.rows, self.codes = rows, codes.unsqueeze(1)
        self.correlations, self.outputs, self.penalty = correlations, classes, penalty

    def slope(self, columns: Sequence[int], fit: Fit) -> Slope:
        """Return the slopes as `Objective.slope` does; the curvature is the mean over rows of `diag(p) - p pᵀ`."""
        logits = self._taken(columns) @ self._tensor(np.vstack([fit.weights, fit.intercept]))
        loss, p = self._softmax(logits)
        curvature = self._curvature(p)
        residual = self._residual(p)
        slopes = (self.rows.T @ residual).double().numpy() / len(p)
        return Slope(loss, slopes, residual.sum(0, dtype=torch.float64).numpy() / len(p), curvature)

    def refit(self, columns: Sequence[int], start: Fit) -> Fit:
        """Refit as `Objective.refit` does, by L-BFGS with a preconditioner: Newton's step if every row had the mean
        curvature.
        """
        rows = self._taken(columns)
        W = self._tensor(np.vstack([start.weights, start.intercept]))
        Z = rows @ W
        loss, p = self._softmax(Z)
        gram = np.eye(len(columns) + 1)
        gram[:-1, :-1] = self.correlations[np.ix_(list(columns), list(columns))]
        newton = _Newton(gram, self._curvature(p), self.penalty)
        pairs: list[tuple[Matrix, Matrix]] = []
        G = self._gradient(rows, W, p)
        for _ in range(_REFIT_STEPS):
            direction = _direction(G, pairs, newton)
            fall = float((G * direction).sum())
            if -fall <= _REFIT_TOLERANCE * max(loss, 1e-2):
                break
            D = self._tensor(direction)
            ZD, value, step = rows @ D, loss + self._cost(W), 1.0
            for _ in range(_HALVINGS):
                loss, p = self._softmax(Z + step * ZD)
                if loss + self._cost(W + step * D) <= value + 1e-4 * step * fall:
                    break
                step /= 2
            else:
                break
            W, Z = W + step * D, Z.add_(ZD, alpha=step)
            new = self._gradient(rows, W, p)
            pairs.append((step * direction, new - G))
            G = new
        found = W.double().numpy()
        return Fit(found[:-1], found[-1])

    def _gradient(self, rows: Tensor, W: Tensor, p: Tensor) -> Matrix:
        """Return the gradient of the penalised loss; this overwrites `p`."""
        G = (rows.T @ self._residual(p)).double() / len(p)
        G[:-1] += self.penalty * W[:-1]
        slopes: Matrix = G.numpy()
        return slopes

    def _tensor(self, weights: Matrix) -> Tensor:
        return torch.from_numpy(weights).to(self.rows.dtype)

    def _taken(self, columns: Sequence[int]) -> Tensor:
        """Return the chosen columns and a column of ones, `(N, s+1)`."""
        return torch.cat([self.rows[:, list(columns)], self.rows.new_ones(len(self.rows), 1)], dim=1)

    def _softmax(self, logits: Tensor) -> tuple[float, Tensor]:
        log_p = torch.log_softmax(logits, 1)
        loss = -float(log_p.gather(1, self.codes).sum(dtype=torch.float64)) / len(logits)
        return loss, log_p.exp_()

    def _residual(self, p: Tensor) -> Tensor:
        """Return `p - y`, in the place of `p`."""
        return p.scatter_add_(1, self.codes, p.new_full((1, 1), -1.0).expand(self.codes.shape))

    def _curvature(self, p: Tensor) -> Matrix:
        mean = p.mean(0, dtype=torch.float64)
        curvature: Matrix = (torch.diag(mean) - (p.T @ p).double() / len(p)).numpy()
        return curvature

    def _cost(self, W: Tensor) -> float:
        return 0.5 * self.penalty * float(W[:-1].double().square().sum())


class _Newton:
    """Solves `gram Δ curvature + λ Δ = G`: a Cholesky factor for every eigenvector of the curvature."""

    def __init__(self, gram: Matrix, curvature: Matrix, penalty: float) -> None:
        values, vectors = np.linalg.eigh(curvature)
        kept = values > 1e-7 * values[-1]
        self._vectors = vectors[:, kept]
        ridge = np.eye(len(gram))
        ridge[-1, -1] = 0.0
        self._factors = [cho_factor(value * gram + (penalty + 1e-9 * value) * ridge) for value in values[kept]]

    def solve(self, G: Matrix) -> Matrix:
        """Return Δ of G, both `(s+1, K)`."""
        turned = (G @ self._vectors).T
        found: Matrix = np.stack([cho_solve(factor, g) for factor, g in zip(self._factors, turned, strict=True)], 1)
        back: Matrix = found @ self._vectors.T
        return back


def _direction(G: Matrix, pairs: Sequence[tuple[Matrix, Matrix]], newton: _Newton) -> Matrix:
    """Return the direction by the two-loop recursion around the Newton step."""
    q, kept = G.copy(), []
    for s, t in reversed(pairs[-_MEMORY:]):
        curvature = float((s * t).sum())
        if curvature > 0:
            a = float((s * q).sum()) / curvature
            q -= a * t
            kept.append((s, t, a, curvature))
    r = newton.solve(q)
    for s, t, a, curvature in reversed(kept):
        r += (a - float((t * r).sum()) / curvature) * s
    return -r


_LEAST_VARIANCE = 1e-6
_FALL = 0.9
_LAST = 1e-3
_OUTER, _INNER = 12, 200
_TOLERANCE = 1e-5


def forward(objective: Objective, most: int) -> tuple[list[int], list[Fit]]:
    """Select coordinates forward: repeatedly add the coordinate whose score test predicts the largest decrease of the
    loss, and refit.

    The predicted decrease is ½ gⱼᵀ C⁺ gⱼ / vⱼ, with gⱼ the slopes of coordinate j at the current fit, C the curvature
    over classes, and vⱼ the part of its variance that the chosen coordinates do not explain. For squared loss it is
    exact (orthogonal least squares).

    Returns:
        The coordinates in the order of entry, at most `most`, and the refit after each.

    References:
        Rao 1948 (score test); Chen, Billings & Luo 1989, Int. J. Control 50 (orthogonal least squares).
    """
    chosen: list[int] = []
    fits: list[Fit] = []
    rest = _Unexplained(objective.correlations)
    fit = start_of(objective)
    while len(chosen) < most:
        slope = objective.slope(chosen, fit)
        j = rest.best(chosen, slope)
        if j is None:
            break
        rest.take(j)
        chosen.append(j)
        fit = objective.refit(chosen, _grown(fit))
        fits.append(fit)
    return chosen, fits


def along(objective: Objective, order: Sequence[int]) -> list[Fit]:
    """Return the refits on the first coordinate of `order`, on the first two, and so on."""
    fits: list[Fit] = []
    fit = start_of(objective)
    for count in range(1, len(order) + 1):
        fit = objective.refit(order[:count], _grown(fit))
        fits.append(fit)
    return fits


def start_of(objective: Objective) -> Fit:
    """Return the fit with intercepts only."""
    return objective.refit([], Fit(np.zeros((0, objective.outputs)), np.zeros(objective.outputs)))


def _grown(fit: Fit) -> Fit:
    return Fit(np.vstack([fit.weights, np.zeros((1, fit.weights.shape[1]))]), fit.intercept)


class _Unexplained:
    """The part of every coordinate that the chosen ones leave: a Cholesky factor of the correlations, pivot by
    pivot.
    """

    def __init__(self, correlations: Matrix) -> None:
        self._correlations = correlations
        self._factor = np.zeros((len(correlations), 0))
        self._left = correlations.diagonal().copy()

    def best(self, chosen: Sequence[int], slope: Slope) -> int | None:
        """Return the coordinate of the largest promise; None if every other is explained by those chosen."""
        own = solve_triangular(self._factor[list(chosen)], slope.weights[list(chosen)], lower=True)
        partial = slope.weights - self._factor @ own
        inverse = np.linalg.pinv(slope.curvature, rcond=1e-6, hermitian=True)
        promise = ((partial @ inverse) * partial).sum(axis=1)
        able = self._left > _LEAST_VARIANCE
        able[list(chosen)] = False
        promise = np.where(able, promise / np.where(able, self._left, 1.0), -np.inf)
        j = int(promise.argmax())
        return j if promise[j] > 1e-12 else None

    def take(self, j: int) -> None:
        """Explain everything by coordinate j too."""
        column = (self._correlations[:, j] - self._factor @ self._factor[j]) / np.sqrt(self._left[j])
        self._factor = np.hstack([self._factor, column[:, None]])
        self._left = self._left - column**2


def lasso_order(objective: Objective, most: int) -> list[int]:
    """Return at most `most` coordinates in the order in which they enter a group-lasso path.

    The path minimises loss + α Σⱼ ‖Wⱼ‖₂ for decreasing α, starting each time from the previous solution. It begins at
    the smallest α for which all weights are 0 and lowers α by 10 % at a time, until `most` coordinates have weights or
    α is a thousandth of the first. Coordinates that enter at the same α are ordered by the size of their weights; those
    whose weights are 0 again at the end are left out.

    References:
        Yuan & Lin 2006, J. R. Stat. Soc. B 68 (group lasso); Friedman, Hastie & Tibshirani 2010, J. Stat. Softw. 33
        (warm-started path); Beck & Teboulle 2009, SIAM J. Imaging Sci. 2 (the accelerated inner steps).
    """
    width = len(objective.correlations)
    fit = start_of(objective)
    W, b = np.zeros((width, objective.outputs)), fit.intercept
    norms = np.linalg.norm(objective.slope([], fit).weights, axis=1)
    varies = objective.correlations.diagonal() > 0.5
    first = alpha = float(norms[varies].max(initial=0.0))
    entered: list[int] = []
    while alpha > _LAST * first:
        alpha *= _FALL
        W, b = _minimised(objective, W, b, alpha, varies)
        sizes = np.linalg.norm(W, axis=1)
        new = [int(j) for j in np.argsort(-sizes, kind="stable") if sizes[j] > 0 and j not in entered]
        entered += new
        if np.count_nonzero(sizes) >= most:
            break
    return [j for j in entered if W[j].any()][:most]


def _minimised(
    objective: Objective, W: Matrix, b: Matrix, alpha: float, varies: NDArray[np.bool_]
) -> tuple[Matrix, Matrix]:
    """Minimise at one α by quadratic models above the loss, each on the coordinates that are in or want in."""
    slope = _slope(objective, W, b)
    bend = float(np.linalg.eigvalsh(slope.curvature)[-1])
    value = slope.loss + alpha * float(np.linalg.norm(W, axis=1).sum())
    for _ in range(_OUTER):
        wanted = varies & (W.any(axis=1) | (np.linalg.norm(slope.weights, axis=1) > 0.95 * alpha))
        working = np.flatnonzero(wanted)
        gram = objective.correlations[np.ix_(working, working)]
        while True:
            change = _inner(W[working], slope.weights[working], gram, bend, alpha) - W[working]
            shift = -slope.intercept / bend
            new = W.copy()
            new[working] += change
            found = _slope(objective, new, b + shift)
            rise = float((slope.weights[working] * change).sum() + slope.intercept @ shift)
            square = float((change * (gram @ change)).sum() + shift @ shift)
            if found.loss <= slope.loss + rise + 0.5 * bend * square + 1e-7 * abs(slope.loss):
                break
            bend *= 1.5
        W, b, slope = new, b + shift, found
        now = slope.loss + alpha * float(np.linalg.norm(W, axis=1).sum())
        if value - now <= _TOLERANCE * abs(value):
            break
        value = now
    return W, b


def _slope(objective: Objective, W: Matrix, b: Matrix) -> Slope:
    active = np.flatnonzero(W.any(axis=1)).tolist()
    return objective.slope(active, Fit(W[active], b))


def _inner(start: Matrix, slopes: Matrix, gram: Matrix, bend: float, alpha: float) -> Matrix:
    """Minimise ⟨g, V - start⟩ + ½ bend tr((V - start)ᵀ gram (V - start)) + α Σ ‖Vⱼ‖ by accelerated proximal steps."""
    if not len(start):
        return start
    size = bend * max(float(np.linalg.eigvalsh(gram)[-1]), 1e-12)
    V, ahead, momentum = start, start, 1.0
    for _ in range(_INNER):
        moved = ahead - (slopes + bend * (gram @ (ahead - start))) / size
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        new = moved * np.maximum(0.0, 1 - (alpha / size) / np.maximum(norms, 1e-300))
        grown = 0.5 * (1 + np.sqrt(1 + 4 * momentum**2))
        restart = float(((ahead - new) * (new - V)).sum()) > 0
        ahead = new if restart else new + (momentum - 1) / grown * (new - V)
        done = np.abs(new - V).max() <= 1e-6 * (np.abs(new).max() + 1e-12)
        V, momentum = new, 1.0 if restart else grown
        if done:
            break
    return V
