"""Ridge regression in closed form: the default probe of a real-valued target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from probing.errors import BadParameter
from probing.probes._estimator import RegressorProbe, checked_matrix, same_for_every_seed
from probing.probes._standardise import moments, row_blocks, standardise
from probing.store.row_blocks import RowBlocks


class RidgeProbe(RegressorProbe):
    """Minimises mean squared error + (l2/N)·‖w‖² on standardised states; the intercept is free.

    Equals scikit-learn's `Ridge(alpha=l2)` on the same standardised states. The Gram matrix is factored once,
    in float64, for all targets of `fit_many`; directions it cannot resolve are left out, so l2=0 gives the
    solution of least norm.

    Args:
        l2: penalty; 0 or more.
    """

    reads_blocks = True
    _arrays = ("coef", "mean", "scale")
    _scalars = ("intercept",)

    coef_: NDArray[np.float64]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    intercept_: float

    def __init__(self, l2: float = 1.0) -> None:
        self.l2 = l2

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on `(N, D)` states and `(N,)` targets."""
        rows, targets = self._training_rows(X, y)
        self.mean_, self.scale_ = moments(rows)
        (self.coef_,), (self.intercept_,) = _solve(rows, [targets], self.mean_, self.scale_, self.l2)
        return self

    def fit_many(
        self,
        X: NDArray[np.float32] | RowBlocks,
        targets: Sequence[NDArray[Any]],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[Self]]:
        """One factorisation for every target; one fit serves every seed. See `Probe.fit_many`.

        Row blocks are read three times, a block at a time.
        """
        X = X if isinstance(X, RowBlocks) else checked_matrix(self.with_seed(0), X)
        mean, scale = moments(X)
        coefs, intercepts = _solve(X, [np.asarray(y, np.float64) for y in targets], mean, scale, self.l2)
        fits = []
        for coef, intercept in zip(coefs, intercepts, strict=True):
            state = {"coef": coef, "mean": mean, "scale": scale, "intercept": np.asarray(intercept)}
            state["n_features_in"] = np.asarray(X.shape[1])
            fitted = self.with_seed(0).with_state(state)
            fits.append(same_for_every_seed(self, fitted, seeds))
        return fits

    def predict(self, X: ArrayLike | RowBlocks) -> NDArray[Any]:
        """`(N,)` float64."""
        if isinstance(X, RowBlocks):
            return np.concatenate([self.predict(states) for _, states in X.blocks()])
        rows = standardise(self._rows(X), self.mean_, self.scale_).astype(np.float64)
        return np.asarray(rows @ self.coef_ + self.intercept_)


def _solve(
    X: NDArray[Any] | RowBlocks,
    targets: list[NDArray[np.float64]],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    l2: float,
) -> tuple[list[NDArray[np.float64]], list[float]]:
    """Weights `(D,)` and intercept of every target. The rows are read in blocks."""
    if not l2 >= 0:
        raise BadParameter("l2 must be 0 or more", needed="a number of at least 0", found=repr(l2))
    width = X.shape[1]
    centres = np.array([y.mean() for y in targets])
    Y = np.stack(targets, axis=1) - centres
    gram, products = np.zeros((width, width)), np.zeros((width, len(targets)))
    for low, states in row_blocks(X):
        block = standardise(states, mean, scale).astype(np.float64)
        gram += block.T @ block
        products += block.T @ Y[low : low + len(states)]
    values, vectors = eigh(gram)
    kept = values > max(values[-1], 0.0) * width * 1e-12
    inverse = np.where(kept, 1.0 / np.where(kept, values + l2, 1.0), 0.0)
    weights = vectors @ (inverse[:, None] * (vectors.T @ products))
    return list(weights.T), [float(centre) for centre in centres]


MEMBER = RidgeProbe
