"""L2 softmax regression with weights of limited rank: improves the solutions of the solver without a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes._rows import Rows
from probing.probes._softmax import Solution
from probing.seeds import child_seed

_STEPS, _BATCH, _RATE = 8000, 512, 0.1
_CHANGE = 1e-3
_BLOCK_ELEMENTS = 2**18


@dataclass(frozen=True)
class _Fits:
    """Current factors of M label sets: `A` (M, K, R), `B` (M, R, D), intercepts `b` (M, K, 1).

    A label set with fewer classes than K has spare ones: zero rows of A, intercepts of -inf; gradients are 0 there.
    """

    A: Tensor
    B: Tensor
    b: Tensor

    @classmethod
    def cut(cls, full: Sequence[Solution], rank: int, dtype: torch.dtype) -> _Fits:
        """Keep the largest singular values S of each solution's weights: of all factors with the product U S Vᵀ, U√S
        and √S·Vᵀ have the least norm. A rank that limits nothing becomes that of the widest.
        """
        width, classes = len(full[0].weights), max(len(one.intercept) for one in full)
        rank = min(rank, width, classes)
        A, B = torch.zeros(len(full), classes, rank, dtype=dtype), torch.zeros(len(full), rank, width, dtype=dtype)
        b = torch.full((len(full), classes, 1), -torch.inf, dtype=dtype)
        for m, one in enumerate(full):
            U, S, Vh = torch.linalg.svd(one.weights.T, full_matrices=False)
            root, k, r = S[:rank].sqrt(), len(one.intercept), len(S[:rank])
            A[m, :k, :r], B[m, :r], b[m, :k, 0] = U[:, :rank] * root, root[:, None] * Vh[:rank], one.intercept
        return cls(A, B, b)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.A, self.B, self.b

    def hidden(self, x: Tensor) -> Tensor:
        """Return the products of B with rows `(n, D)`, of all label sets as one, `(M, R, n)`."""
        return (self.B.flatten(0, 1) @ x.T).view(*self.B.shape[:2], len(x))

    def chosen(self, better: Tensor, others: _Fits) -> _Fits:
        """Return these factors for the label sets `(M,)` that are better, and the others' elsewhere."""
        pairs = zip(self.parts, others.parts, strict=True)
        return _Fits(*(torch.where(better.view(-1, 1, 1), mine, theirs) for mine, theirs in pairs))


def solve_low_rank(
    rows: Rows, codes: Sequence[Tensor], full: Sequence[Solution], penalties: Sequence[float], rank: int
) -> list[Solution]:
    """Fit weights W = A·B of limited rank for every label set: return a low point of the mean log loss + ½ λ (‖A‖² +
    ‖B‖²), near a local minimum.

    Each label set starts from its full-rank solution, cut to the rank, and is trained by Adam for about 8,000 steps,
    since few directions that separate many classes need large weights. The learning rate falls to 0; it is larger for
    lower ranks. All label sets read the same batches in the same order, so each batch is multiplied once for all; they
    do not affect each other. Of the start and the last two epochs, the point with the lowest objective on all rows is
    returned.

    Returns:
        One solution per label set; `converged` if the objectives of the last two epochs differ by less than a share of
        1e-3.
    """
    y, lam = torch.stack(list(codes)), torch.tensor(penalties, dtype=torch.float64)
    best = _Fits.cut(full, rank, rows.dtype)
    now = _Fits(*(part.clone() for part in best.parts))
    least = value = _objectives(rows, y, best, lam)
    change = torch.full_like(least, torch.inf)
    epochs = max(3, -(-_STEPS * min(_BATCH, rows.n) // rows.n))
    source, adam = torch.Generator().manual_seed(child_seed(0, "low_rank")), _Adam(now)
    for epoch in range(epochs):
        rate = _RATE / rank * (1 - epoch / epochs) ** 1.5
        for start, block in rows.blocks(2**16):
            for picked in torch.split(torch.randperm(len(block), generator=source), _BATCH):
                adam.step(_gradients(block[picked], y[:, start + picked], now, lam), rate)
        if epoch >= epochs - 2:
            last, value = value, _objectives(rows, y, now, lam)
            change = (last - value).abs() / value.clamp_min(1e-12)
            best, least = now.chosen(value < least, best), torch.minimum(value, least)
    return [
        _low_rank_solution(best, m, float(least[m]), one, epochs, converged=bool(change[m] < _CHANGE))
        for m, one in enumerate(full)
    ]


class _Adam:
    """Moves fits in place by Adam."""

    def __init__(self, fits: _Fits) -> None:
        self._parts, self._steps = fits.parts, 0
        self._first, self._second = ([torch.zeros_like(part) for part in fits.parts] for _ in range(2))

    def step(self, gradients: tuple[Tensor, Tensor, Tensor], rate: float) -> None:
        self._steps += 1
        for part, g, first, second in zip(self._parts, gradients, self._first, self._second, strict=True):
            first.lerp_(g, 0.1)
            second.mul_(0.999).addcmul_(g, g, value=0.001)
            scale = (second / (1 - 0.999**self._steps)).sqrt_().add_(1e-8)
            part.addcdiv_(first, scale, value=-rate / (1 - 0.9**self._steps))


def _gradients(x: Tensor, y: Tensor, fits: _Fits, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the mean objectives of one batch of rows `(n, D)` with codes `(M, n)`."""
    h, weight = fits.hidden(x), lam.to(x.dtype).view(-1, 1, 1)
    residual = torch.softmax(torch.baddbmm(fits.b, fits.A, h), 1)
    own = y.unsqueeze(1)
    residual.scatter_add_(1, own, residual.new_full((1, 1, 1), -1.0).expand(own.shape))
    residual /= len(x)
    towards = (fits.A.mT @ residual).flatten(0, 1) @ x
    return residual @ h.mT + weight * fits.A, towards.view_as(fits.B) + weight * fits.B, residual.sum(2, keepdim=True)


def _objectives(rows: Rows, y: Tensor, fits: _Fits, lam: Tensor) -> Tensor:
    """Return the objectives, `(M,)` float64."""
    total = torch.zeros_like(lam)
    for start, x in rows.blocks(max(64, _BLOCK_ELEMENTS // fits.b.numel())):
        z = torch.baddbmm(fits.b, fits.A, fits.hidden(x))
        own = z.gather(1, y[:, start : start + len(x)].unsqueeze(1)).squeeze(1)
        total += (z.logsumexp(1) - own).sum(1, dtype=torch.float64)
    weighed = sum(part.square().sum((1, 2), dtype=torch.float64) for part in (fits.A, fits.B))
    return total / rows.n + 0.5 * lam * weighed


def _low_rank_solution(
    fits: _Fits, m: int, objective: float, full: Solution, epochs: int, *, converged: bool
) -> Solution:
    k = len(full.intercept)
    W, b = (fits.A[m, :k] @ fits.B[m]).T.double(), fits.b[m, :k, 0].double()
    return Solution(W - W.mean(1, keepdim=True), b - b.mean(), objective, full.iterations + epochs, converged)
