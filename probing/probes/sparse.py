"""Fits a probe that reads at most k coordinates of a state, to find which coordinates encode the label, and how few
suffice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from probing.errors import BadParameter
from probing.probes._estimator import ClassifierProbe, Dev, FittedState, RegressorProbe
from probing.probes._rows import HeldRows, StreamedMoments, standardise
from probing.probes._softmax import Stop, solve
from probing.probes._sparse_objectives import Fit, LogLoss, Matrix, Objective, SquaredLoss, along, forward, lasso_order

_FEW_ELEMENTS = 2**21


class _Sparse(FittedState):
    """Base of the classifier and the regressor."""

    PATH_COLUMNS: ClassVar[tuple[str, ...]]

    coordinates_: NDArray[np.int64]
    path_: Matrix
    coef_: Matrix
    mean_: Matrix
    scale_: Matrix
    converged_: bool

    def __init__(self, k: int = 10, method: str = "forward", l2: float = 1.0) -> None:
        self.k = k
        self.method = method
        self.l2 = l2

    def _check_options(self) -> None:
        if self.k < 1:
            raise BadParameter("k must be at least 1", needed="a number of coordinates", found=str(self.k))
        if self.method not in ("forward", "l1"):
            raise BadParameter("unknown method of selection", needed="forward or l1", found=repr(self.method))
        if not self.l2 >= 0:
            raise BadParameter("l2 must be 0 or more", needed="at least 0", found=repr(self.l2))

    def _choose(self, objective: Objective) -> list[Fit]:
        """Set `coordinates_`, and return the fit of every number of them."""
        most = min(self.k, len(objective.correlations))
        if self.method == "forward":
            chosen, fits = forward(objective, most)
        else:
            chosen = lasso_order(objective, most)
            fits = along(objective, chosen)
        self.coordinates_ = np.array(chosen, dtype=np.int64)
        return fits

    def _set_path(
        self,
        fits: Sequence[Fit],
        rows: NDArray[np.float32],
        held_out: NDArray[np.float32] | None,
        score: Callable[[Matrix, bool], tuple[float, ...]],
    ) -> None:
        """Score outputs of every fit on train and dev; NaN where there is no dev."""
        found = []
        for count, fit in enumerate(fits, start=1):
            chosen = self.coordinates_[:count]
            scores = score(rows[:, chosen] @ fit.weights + fit.intercept, False)
            outside = None if held_out is None else held_out[:, chosen] @ fit.weights + fit.intercept
            found.append((*scores, *((np.nan,) * len(scores) if outside is None else score(outside, True))))
        self.path_ = np.array(found, dtype=np.float64).reshape(len(fits), len(self.PATH_COLUMNS))

    def _outputs(self, X: NDArray[Any]) -> Matrix:
        """Return the outputs from the chosen coordinates alone, `(N, K)`."""
        rows = standardise(X[:, self.coordinates_], self.mean_, self.scale_).astype(np.float64)
        return np.asarray(rows @ self.coef_)


def _standardised(
    X: NDArray[Any], targets: Sequence[NDArray[Any]], dev: tuple[NDArray[Any], Any] | None
) -> tuple[StreamedMoments, NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the moments of the training rows, and these rows and the dev rows standardised by them."""
    sums = StreamedMoments.of(X, targets)
    outside = None if dev is None else standardise(np.asarray(dev[0]), sums.mean, sums.scale)
    return sums, standardise(X, sums.mean, sums.scale), outside


class SparseProbe(_Sparse, ClassifierProbe):
    """Fits softmax regression on at most k coordinates of the standardised state, which are chosen on the training
    rows.

    `forward` adds one coordinate at a time, the one predicted to lower the log loss most, and refits after each. `l1`
    lowers a group-lasso penalty step by step and takes the first k coordinates whose weights are not 0. Both end with a
    fit on the chosen coordinates only, with the L2 penalty of `linear` and no L1 penalty, so selection does not shrink
    the weights.

    It misleads where coordinates are correlated: of two that carry the same information only one may be chosen, and
    either method can first choose a coordinate that only sums several others. The result is *a* set that is sufficient,
    not the only one. And since k of D coordinates are chosen as the best of many sets, judge the scores in
    `path_` on dev, not on train.

    Args:
        k: largest number of coordinates.
        method: how coordinates are chosen, `forward` or `l1`.
        l2: penalty of the fits on chosen coordinates, as in `linear`.

    Attributes:
        coordinates_: `(s,)` chosen columns of X, s ≤ k, in the order of entry.
        path_: `(s, 4)`, whose row i − 1 holds the scores of a fit on the first i coordinates (stopped early): log loss
            in bits and accuracy on train, then the same two on dev (NaN without dev). `PATH_COLUMNS` names the columns.
        coef_: `(s, K)` weights on the chosen coordinates of the standardised states.
        intercept_: `(K,)` intercepts.
        converged_: whether the last fit converged.

    References:
        Dalvi et al. 2019, *What is one grain of sand in the desert?*, §3. Gurnee et al. 2023, *Finding neurons in a
        haystack*, §3.
    """

    PATH_COLUMNS = ("train log loss", "train accuracy", "dev log loss", "dev accuracy")
    _arrays = ("classes", "coordinates", "path", "coef", "intercept", "mean", "scale")

    intercept_: Matrix

    def predict_log_proba(self, X: ArrayLike) -> Matrix:
        """Return the natural log probabilities of K classes for each of the N states in X, `(N, K)`."""
        return np.asarray(log_softmax(self._outputs(self._rows(X)) + self.intercept_, axis=1))

    def _fit_all(
        self, X: NDArray[Any], fits: Sequence[Sequence[Self]], targets: Sequence[NDArray[np.int64]], dev: Dev
    ) -> None:
        """Fit every label set; rows are standardised, and their correlations summed, once. `dev` is scored only."""
        self._check_options()
        sums, rows, held_out = _standardised(X, (), dev)
        tensor = torch.from_numpy(rows)
        tensor = tensor.double() if rows.size <= _FEW_ELEMENTS else tensor
        for m, ((probe,), y) in enumerate(zip(fits, targets, strict=True)):
            classes = len(probe.classes_)
            penalty = (2.0 if classes == 2 else 1.0) * self.l2 / len(X)
            target = torch.from_numpy(y)
            path = probe._choose(LogLoss(tensor, target, classes, sums.correlations, penalty))
            probe._set_path(path, rows, held_out, _scorer(probe.classes_, y, None if dev is None else dev[1][m]))
            chosen = tensor[:, probe.coordinates_].contiguous()
            (found,) = solve(HeldRows(chosen), [target], [classes], [penalty], Stop(1e-5, 200))
            probe.coef_, probe.intercept_ = found.weights.numpy(), found.intercept.numpy()
            probe.mean_, probe.scale_ = sums.mean[probe.coordinates_], sums.scale[probe.coordinates_]
            probe.converged_ = found.converged


def _scorer(
    classes: NDArray[Any], codes: NDArray[np.int64], dev: NDArray[Any] | None
) -> Callable[[Matrix, bool], tuple[float, ...]]:
    """Return a function that gives log loss in bits and accuracy. A dev label that training never saw counts as wrong,
    and not in the log loss.
    """
    places = None if dev is None else np.searchsorted(classes, dev).clip(0, len(classes) - 1)
    outside = None if places is None else np.where(classes[places] == dev, places, -1)

    def score(logits: Matrix, is_dev: bool) -> tuple[float, ...]:
        y = outside if is_dev and outside is not None else codes
        known = np.flatnonzero(y >= 0)
        logs = log_softmax(logits[known], axis=1)[np.arange(len(known)), y[known]]
        bits = -float(logs.mean()) / np.log(2) if len(known) else np.nan
        return bits, float((logits.argmax(axis=1) == y).mean())

    return score


class SparseRegressorProbe(_Sparse, RegressorProbe):
    """Fits ridge regression on at most k coordinates; see `SparseProbe`. Its `forward` is orthogonal least squares.

    Attributes:
        path_: `(s, 2)`, one row per number of coordinates from 1 to s: R² on train and on dev.
        intercept_: the intercept, one number.
    """

    PATH_COLUMNS = ("train R²", "dev R²")
    _arrays = ("coordinates", "path", "coef", "mean", "scale")
    _scalars = ("intercept",)

    intercept_: float

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the value predicted for each of the N states in X, `(N,)` float64."""
        return self._outputs(self._rows(X))[:, 0] + self.intercept_

    def _fit_all(
        self, X: NDArray[Any], fits: Sequence[Sequence[Self]], targets: Sequence[NDArray[np.float64]], dev: Dev
    ) -> None:
        """Fit every target; rows are standardised, and their correlations summed, once. `dev` is scored only."""
        self._check_options()
        sums, rows, held_out = _standardised(X, targets, dev)
        for m, ((probe,), y) in enumerate(zip(fits, targets, strict=True)):
            centre = float(y.mean())
            spread = float(((y - centre) ** 2).mean())
            products = sums.products[:, m : m + 1]
            path = probe._choose(SquaredLoss(sums.correlations, products, spread, self.l2 / len(y)))
            outside = None if dev is None else np.asarray(dev[1][m], np.float64)
            probe._set_path(path, rows, held_out, _r2(y, outside, centre))
            probe.coef_ = path[-1].weights if path else np.zeros((0, 1))
            probe.mean_, probe.scale_ = sums.mean[probe.coordinates_], sums.scale[probe.coordinates_]
            probe.intercept_, probe.converged_ = centre, True


def _r2(y: Matrix, dev: Matrix | None, centre: float) -> Callable[[Matrix, bool], tuple[float, ...]]:
    def score(outputs: Matrix, is_dev: bool) -> tuple[float, ...]:
        truth = dev if is_dev and dev is not None else y
        spread = float(((truth - truth.mean()) ** 2).sum())
        left = float(((truth - centre - outputs[:, 0]) ** 2).sum())
        return (1 - left / spread if spread else np.nan,)

    return score


MEMBER = SparseProbe
REGRESSION_MEMBER = SparseRegressorProbe
