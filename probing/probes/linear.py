"""Fits multinomial logistic regression with an L2 penalty: the default probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from probing.contracts.probe import RowBlocks
from probing.errors import BadParameter
from probing.probes._estimator import ClassifierProbe, Dev
from probing.probes._rows import HeldRows, Rows, StreamedRows, moments, rounded, standardise, standardise_rounded
from probing.probes._softmax import Solution, Stop, solve
from probing.probes._softmax_low_rank import solve_low_rank

_FEW_ELEMENTS = 2**18


@dataclass(frozen=True)
class _Standard:
    """Standardised rows, and the mean and scale `(D,)` that they were standardised by."""

    rows: Rows
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, X: NDArray[Any] | RowBlocks, device: str) -> _Standard:
        """Standardise an array, or row blocks, which are held if they fit their budget, else streamed; rows are given
        on the device.
        """
        mean, scale = moments(X)
        is_streamed = isinstance(X, RowBlocks) and not X.fits
        is_small = not is_streamed and X.shape[0] * X.shape[1] <= _FEW_ELEMENTS
        budget = {"budget": X.budget // 16} if isinstance(X, RowBlocks) else {}
        if is_small or X.dtype != np.float32:
            rows = torch.from_numpy(standardise(np.asarray(X), mean, scale))
            return cls(HeldRows((rows.double() if is_small else rows).to(device), **budget), mean, scale)
        mean, scale = rounded(mean), np.maximum(rounded(scale), np.finfo(np.float32).tiny)
        if isinstance(X, RowBlocks) and is_streamed:
            return cls(StreamedRows(X, mean, scale, device), mean, scale)
        rows = torch.from_numpy(standardise_rounded(np.asarray(X), mean, scale))
        return cls(HeldRows(rows.to(device), **budget), mean, scale)


class LinearProbe(ClassifierProbe):
    """Fits softmax regression on standardised states. It minimises mean log loss + ½ (l2/N)·‖W‖², with W the weights
    and N the number of rows; intercepts are not penalised.

    This is the objective of scikit-learn's `LogisticRegression(C=1/l2)` on the same standardised states. With two
    classes the penalty is on the single vector w = w₁ - w₀, as in scikit-learn, and the stored weights are ∓w/2.
    Without `rank` the optimum is unique, so seeds have no effect: `fit_many` fits each set of labels once. Small
    problems are solved in float64, large ones in float32 with losses summed in float64.

    Args:
        l2: penalty; it equals 1/C of scikit-learn and is weighed against the sum of the rows' log losses.
        tolerance: the fit stops when the improvement that is still possible, as a Newton step predicts it, is at most
            this fraction of the objective. On states of language models, the default reaches the same or a lower
            objective than scikit-learn's default; 1e-6 gives the objective to six digits.
        max_iterations: largest number of L-BFGS iterations.
        rank: largest rank R of the weights W = A·B, `(K, R)` times `(R, D)`; None means no limit. With a rank, the
            penalty is ½ (l2/N)·(‖A‖² + ‖B‖²), which at an optimum is (l2/N) times the sum of W's singular values. This
            objective is not convex: the fit starts from the optimum without a limit, reduced to its R largest singular
            values, and ends near a local optimum, which is the same in every run (for R = 1, which puts the classes on
            a line, often not the best one). A rank of K - 1 or more does not limit W, but the penalty differs from that
            of `rank=None`.

    Attributes:
        coef_: `(D, K)` weights on standardised states, columns in the order of `classes_`, with mean 0 over classes.
        intercept_: `(K,)` intercepts.
        converged_: whether the tolerance was met (or no improvement is possible in this precision).
        objective_: the objective at the solution.
        n_iter_: number of iterations.
        mean_: `(D,)` mean of the training states, which standardising subtracts.
        scale_: `(D,)` standard deviations of the training states, by which standardising divides.
    """

    accepts_blocks = True
    accepts_device = True
    _arrays = ("classes", "coef", "intercept", "mean", "scale")

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    converged_: bool
    objective_: float
    n_iter_: int

    def __init__(
        self, l2: float = 1.0, tolerance: float = 1e-4, max_iterations: int = 200, rank: int | None = None
    ) -> None:
        self.l2 = l2
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.rank = rank

    def fit_prefixes(
        self,
        X: NDArray[np.float32] | RowBlocks,
        targets: Sequence[NDArray[Any]],
        ends: Sequence[int],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[list[Self]]]:
        """Fit on the first `ends[b]` rows for every b, each time starting from the fit before. Arguments and result are
        those of `Probe.fit_prefixes`.
        """
        fits, starts = [], None
        for end in ends:
            part = X.head(end) if isinstance(X, RowBlocks) else X[:end]
            started = [self._started(part, y[:end]) for y in targets]
            ended = [probe for probe, _ in started]
            self._fit_all(part, [[probe] for probe in ended], [codes for _, codes in started], None, starts)
            fits.append([[self._copied(probe, seed) for seed in seeds] for probe in ended])
            starts = ended
        return fits

    def predict_log_proba(self, X: ArrayLike | RowBlocks) -> NDArray[np.float64]:
        """Return the natural log probabilities of K classes for each of the N states in X, `(N, K)`."""
        if isinstance(X, RowBlocks):
            return np.concatenate([self.predict_log_proba(states) for _, states in X.blocks()])
        rows = standardise(self._rows(X), self.mean_, self.scale_).astype(np.float64)
        return np.asarray(log_softmax(rows @ self.coef_ + self.intercept_, axis=1))

    def _fit_all(
        self,
        X: NDArray[Any] | RowBlocks,
        fits: Sequence[Sequence[Self]],
        targets: Sequence[NDArray[np.int64]],
        dev: Dev,
        starts: Sequence[LinearProbe] | None = None,
    ) -> None:
        """Fit all label sets in one batched solve, each from the optimum of `starts` on fewer rows, if given."""
        self._check_options()
        standard, probes = _Standard.of(X, self.device), [probe for (probe,) in fits]
        rows, numbers = standard.rows, [torch.from_numpy(y) for y in targets]
        classes = [len(probe.classes_) for probe in probes]
        weight = [self.l2 / rows.n] * len(classes)
        solutions = solve(
            rows,
            numbers,
            classes,
            [w * (2.0 if k == 2 else 1.0) for w, k in zip(weight, classes, strict=True)],
            Stop(self.tolerance, self.max_iterations),
            starts and [_start(old, new, standard) for old, new in zip(starts, probes, strict=True)],
        )
        if self.rank is not None:
            rows = rows if rows.device.type == "cpu" else _Standard.of(X, "cpu").rows  # small steps: no gain elsewhere
            solutions = solve_low_rank(rows, numbers, solutions, weight, self.rank)
        for probe, solution in zip(probes, solutions, strict=True):
            probe.mean_, probe.scale_ = standard.mean, standard.scale
            probe.coef_, probe.intercept_ = solution.weights.numpy(), solution.intercept.numpy()
            probe.objective_, probe.n_iter_ = solution.objective, max(1, solution.iterations)
            probe.converged_ = solution.converged

    def _check_options(self) -> None:
        for name in ("l2", "tolerance"):
            if not getattr(self, name) >= 0:
                raise BadParameter(f"{name} must be 0 or more", needed="at least 0", found=repr(getattr(self, name)))
        for name in ("max_iterations", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadParameter(f"{name} must be at least 1", needed="1 or more", found=str(value))


def _start(old: LinearProbe, new: LinearProbe, standard: _Standard) -> Solution:
    """Return the old solution in the new rows' standardisation and classes; a class it did not know starts as the
    rarest.
    """
    coef = np.zeros((len(standard.mean), len(new.classes_)))
    intercept = np.full(len(new.classes_), old.intercept_.min())
    known = np.searchsorted(new.classes_, old.classes_)
    coef[:, known] = old.coef_ * (standard.scale / old.scale_)[:, None]
    intercept[known] = old.intercept_ + ((standard.mean - old.mean_) / old.scale_) @ old.coef_
    return Solution(torch.from_numpy(coef), torch.from_numpy(intercept), np.nan, 0, False)


MEMBER = LinearProbe
