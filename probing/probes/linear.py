"""Multinomial logistic regression with an L2 penalty: the default probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from probing.errors import BadParameter
from probing.probes._estimator import ClassifierProbe, checked_matrix, same_for_every_seed
from probing.probes._softmax import solve
from probing.probes._standardise import moments, standardise

_FEW_ELEMENTS = 2**21


class LinearProbe(ClassifierProbe):
    """Softmax regression on standardised states: minimises mean log loss + ½ (l2/N)·‖W‖², intercept free.

    This is the objective of scikit-learn's `LogisticRegression(C=1/l2)` on the same standardised states. Two classes
    are penalised as scikit-learn does it, through the one vector w₁ - w₀, stored as weights ∓w/2. There is one optimum,
    so no seed: `fit_many` fits each label set once. Small problems are solved in float64, large ones in float32
    with losses summed in float64.

    Args:
        l2: penalty, in units of one row's log loss; 1/C of scikit-learn.
        tolerance: fraction of the objective that may be left to gain, as the Newton model predicts it. The default
            ends at or below scikit-learn's own default on language-model states; 1e-6 gives six digits.
        max_iterations: L-BFGS iterations at most.

    Attributes:
        coef_: `(D, K)` weights on standardised states, columns in the order of `classes_`, centred over classes.
        intercept_: `(K,)`.
        converged_: the tolerance was met (or nothing more could be gained in this precision).
        objective_: the objective at the solution.
        n_iter_: iterations.
    """

    _arrays = ("classes", "coef", "intercept", "mean", "scale")

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    converged_: bool
    objective_: float
    n_iter_: int

    def __init__(self, l2: float = 1.0, tolerance: float = 1e-4, max_iterations: int = 200) -> None:
        self.l2 = l2
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on `(N, D)` states and `(N,)` labels; `dev` is not used."""
        rows, codes = self._training_rows(X, y)
        self._solve_all(rows, [self], [codes])
        return self

    def fit_many(
        self,
        X: NDArray[np.float32],
        targets: Sequence[NDArray[Any]],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[Self]]:
        """All label sets in one batched solve; one fit serves every seed. See `Probe.fit_many`."""
        X = checked_matrix(self.with_seed(0), X)
        started = [self._with_codes(y, X.shape[1]) for y in targets]
        fitted = [probe for probe, _ in started]
        self._solve_all(X, fitted, [codes for _, codes in started])
        return [same_for_every_seed(self, probe, seeds) for probe in fitted]

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """`(N, K)` natural logs."""
        rows = standardise(self._rows(X), self.mean_, self.scale_).astype(np.float64)
        return np.asarray(log_softmax(rows @ self.coef_ + self.intercept_, axis=1))

    def _solve_all(self, X: NDArray[Any], probes: Sequence[LinearProbe], codes: Sequence[NDArray[np.int64]]) -> None:
        for name in ("l2", "tolerance"):
            if not getattr(self, name) >= 0:
                raise BadParameter(f"{name} must be 0 or more", needed="at least 0", found=repr(getattr(self, name)))
        if self.max_iterations < 1:
            raise BadParameter("max_iterations must be at least 1", needed="1 or more", found=str(self.max_iterations))
        mean, scale = moments(X)
        rows = torch.from_numpy(standardise(X, mean, scale))
        classes = [len(probe.classes_) for probe in probes]
        solutions = solve(
            rows.double() if rows.numel() <= _FEW_ELEMENTS else rows,
            [torch.from_numpy(y) for y in codes],
            classes,
            [(2.0 if k == 2 else 1.0) * self.l2 / len(X) for k in classes],
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        for probe, solution in zip(probes, solutions, strict=True):
            probe.mean_, probe.scale_ = mean, scale
            probe.coef_, probe.intercept_ = solution.weights.numpy(), solution.intercept.numpy()
            probe.objective_, probe.n_iter_ = solution.objective, max(1, solution.iterations)
            probe.converged_ = solution.converged


MEMBER = LinearProbe
