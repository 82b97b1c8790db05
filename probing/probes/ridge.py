"""Fits ridge regression in closed form: the default probe for real-valued labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from probing.contracts.probe import RowBlocks
from probing.errors import BadParameter
from probing.probes._estimator import Dev, RegressorProbe
from probing.probes._rows import StreamedMoments, solved, standardise

_CERTAIN = 1e-10  # a penalty of this share of the trace leaves Cholesky's method six digits in float64


class RidgeProbe(RegressorProbe):
    """Fits ridge regression on standardised states. It minimises mean squared error + (l2/N)·‖w‖², with w the weights
    and N the number of rows; the intercept is not penalised.

    It equals scikit-learn's `Ridge(alpha=l2)` on the same standardised states. Rows are read once, block by block.
    Their correlation matrix is factored once, in float64, for all sets of targets of `fit_many`. If l2 is 0 or nearly
    so, directions with numerically zero variance are left out, so that l2=0 gives the minimum-norm solution.

    Args:
        l2: penalty, 0 or more.

    Attributes:
        coef_: `(D,)` weights on standardised states.
        intercept_: the intercept, one number.
        mean_: `(D,)` mean of the training states, which standardising subtracts.
        scale_: `(D,)` standard deviations of the training states, by which standardising divides.
    """

    accepts_blocks = True
    accepts_device = True
    _arrays = ("coef", "mean", "scale")
    _scalars = ("intercept",)

    coef_: NDArray[np.float64]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    intercept_: float

    def __init__(self, l2: float = 1.0) -> None:
        self.l2 = l2

    def predict(self, X: ArrayLike | RowBlocks) -> NDArray[Any]:
        """Return the value predicted for each of the N states in X, `(N,)` float64."""
        if isinstance(X, RowBlocks):
            return np.concatenate([self.predict(states) for _, states in X.blocks()])
        rows = standardise(self._rows(X), self.mean_, self.scale_).astype(np.float64)
        return np.asarray(rows @ self.coef_ + self.intercept_)

    def _fit_all(
        self,
        X: NDArray[Any] | RowBlocks,
        fits: Sequence[Sequence[Self]],
        targets: Sequence[NDArray[np.float64]],
        dev: Dev,
    ) -> None:
        """Fit every target by one factorisation."""
        found = StreamedMoments.of(X, targets, self.device)
        for (probe,), coef, y in zip(fits, self._weights(found), targets, strict=True):
            probe.coef_, probe.mean_, probe.scale_ = coef, found.mean, found.scale
            probe.intercept_ = float(y.mean())

    def _weights(self, found: StreamedMoments) -> list[NDArray[np.float64]]:
        """Return the weights `(D,)` of every target."""
        if not self.l2 >= 0:
            raise BadParameter("l2 must be 0 or more", needed="a number of at least 0", found=repr(self.l2))
        penalty = self.l2 / found.count
        if penalty > _CERTAIN * found.centred.shape[0]:
            penalised = found.correlations.copy()
            penalised.flat[:: len(penalised) + 1] += penalty
            return list(solved(penalised, found.products, self.device).T)
        values, vectors = eigh(found.correlations)
        kept = values > max(values[-1], 0.0) * len(values) * 1e-12
        inverse = np.where(kept, 1.0 / np.where(kept, values + penalty, 1.0), 0.0)
        weights = vectors @ (inverse[:, None] * (vectors.T @ found.products))
        return list(weights.T)


MEMBER = RidgeProbe
