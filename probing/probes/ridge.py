"""Ridge regression in closed form: the default probe of a real-valued target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from probing.contracts.row_blocks import RowBlocks
from probing.errors import BadParameter
from probing.probes._estimator import RegressorProbe, checked_matrix, same_for_every_seed
from probing.probes._rows import StreamedMoments, standardise


class RidgeProbe(RegressorProbe):
    """Minimises mean squared error + (l2/N)·‖w‖² on standardised states; the intercept is free.

    Equals scikit-learn's `Ridge(alpha=l2)` on the same standardised states. The rows are read once, a block at a time;
    their correlations are factored once, in float64, for all targets of `fit_many`; directions that these cannot
    resolve are left out, so l2=0 gives the solution of least norm.

    Args:
        l2: penalty; 0 or more.
    """

    accepts_blocks = True
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
        found = StreamedMoments.of(rows, [targets])
        self.mean_, self.scale_, self.intercept_ = found.mean, found.scale, float(targets.mean())
        (self.coef_,) = self._weights(found)
        return self

    def fit_many(
        self,
        X: NDArray[np.float32] | RowBlocks,
        targets: Sequence[NDArray[Any]],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[Self]]:
        """Fit every target by one factorisation; one fit serves every seed. See `Probe.fit_many`."""
        X = X if isinstance(X, RowBlocks) else checked_matrix(self.with_seed(0), X)
        numbers = [np.asarray(y, np.float64) for y in targets]
        found, fits = StreamedMoments.of(X, numbers), []
        for coef, y in zip(self._weights(found), numbers, strict=True):
            state = {"coef": coef, "mean": found.mean, "scale": found.scale}
            state |= {"intercept": np.asarray(y.mean()), "n_features_in": np.asarray(X.shape[1])}
            fits.append(same_for_every_seed(self, self.with_seed(0).with_state(state), seeds))
        return fits

    def predict(self, X: ArrayLike | RowBlocks) -> NDArray[Any]:
        """Return the predicted values, `(N,)` float64."""
        if isinstance(X, RowBlocks):
            return np.concatenate([self.predict(states) for _, states in X.blocks()])
        rows = standardise(self._rows(X), self.mean_, self.scale_).astype(np.float64)
        return np.asarray(rows @ self.coef_ + self.intercept_)

    def _weights(self, found: StreamedMoments) -> list[NDArray[np.float64]]:
        """Return the weights `(D,)` of every target."""
        if not self.l2 >= 0:
            raise BadParameter("l2 must be 0 or more", needed="a number of at least 0", found=repr(self.l2))
        values, vectors = eigh(found.correlations)
        kept = values > max(values[-1], 0.0) * len(values) * 1e-12
        inverse = np.where(kept, 1.0 / np.where(kept, values + self.l2 / found.count, 1.0), 0.0)
        weights = vectors @ (inverse[:, None] * (vectors.T @ found.products))
        return list(weights.T)


MEMBER = RidgeProbe
