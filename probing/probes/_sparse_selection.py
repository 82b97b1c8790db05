"""Chooses the few coordinates that carry the label: forward selection, and the order of entry along a lasso path.

Both work on any `Objective`: one output (a real target) or K (classes), where a coordinate is in when any of its K
weights is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from probing.probes._sparse_objectives import Fit, Matrix, Objective, Slope

_LEAST_VARIANCE = 1e-6
_FALL = 0.9
_LAST = 1e-3
_OUTER, _INNER = 12, 200
_TOLERANCE = 1e-5


def forward(objective: Objective, most: int) -> tuple[list[int], list[Fit]]:
    """Add the coordinate whose score test promises the largest fall of the loss, refit, and go on.

    The promise is ½ gⱼᵀ C⁺ gⱼ / vⱼ: gⱼ the slopes of coordinate j at the fit so far, C the curvature over classes, vⱼ
    what of its variance the chosen ones leave unexplained. For squared loss it is exact (orthogonal least squares).

    Returns:
        coordinates in the order of entry, at most `most`, and the refit after each.

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
    """Return refits on the first coordinate of `order`, the first two, and so on."""
    fits: list[Fit] = []
    fit = start_of(objective)
    for count in range(1, len(order) + 1):
        fit = objective.refit(order[:count], _grown(fit))
        fits.append(fit)
    return fits


def start_of(objective: Objective) -> Fit:
    """Return the fit without coordinates: intercepts alone."""
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
    """Return the coordinates in the order in which they enter a group-lasso path, at most `most`.

    Minimises loss + α Σⱼ ‖Wⱼ‖₂ for α falling by a tenth from where all weights are 0, each from the last solution,
    until `most` coordinates are in (or α is a thousandth of the first). Coordinates that enter together are ordered by
    their weights; those that leave again do not count.

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
