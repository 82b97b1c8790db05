"""Softmax regression whose weights have a limited rank: W = A·B, from the unlimited optimum by Adam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes._rows import Rows
from probing.probes._softmax import Solution
from probing.seeds import child_seed

_EPOCHS, _BATCH, _RATE = 30, 512, 0.003
_FEWEST_STEPS = 300
_CHANGE = 1e-3


@dataclass(frozen=True)
class _Fit:
    """Where one label set stands: factors `A` (K, R), `B` (R, D), intercept `b` (K,)."""

    A: Tensor
    B: Tensor
    b: Tensor


def solve_low_rank(
    rows: Rows, codes: Sequence[Tensor], full: Sequence[Solution], penalties: Sequence[float], rank: int
) -> list[Solution]:
    """A local minimum of mean log loss + ½ λ (‖A‖² + ‖B‖²) for every label set, one after the other.

    Both factors of a product of given singular values S weigh least as U√S and √S·Vᵀ: that is the start. Adam's rate
    falls to 0; the best epoch by the objective on all rows is kept. A rank that limits nothing is treated like others.

    Returns:
        Solutions; converged if the last two epochs differ by less than 1e-3 of the objective.
    """
    return [_one(rows, y, start, lam, rank) for y, start, lam in zip(codes, full, penalties, strict=True)]


def _one(rows: Rows, y: Tensor, full: Solution, lam: float, rank: int) -> Solution:
    U, S, Vh = torch.linalg.svd(full.weights.T, full_matrices=False)
    root = S[:rank].sqrt()
    parts = [U[:, :rank] * root, root[:, None] * Vh[:rank], full.intercept]
    now = [part.to(rows.dtype).clone() for part in parts]
    epochs = max(_EPOCHS, -(-_FEWEST_STEPS * min(_BATCH, rows.n) // rows.n))
    source = torch.Generator().manual_seed(child_seed(0, "low_rank"))
    first, second = [torch.zeros_like(part) for part in now], [torch.zeros_like(part) for part in now]
    best, least, last, step = _Fit(*now), _objective(rows, y, _Fit(*now), lam), float("inf"), 0
    change = float("inf")
    for epoch in range(epochs):
        for start, block in rows.blocks(2**16):
            for picked in torch.split(torch.randperm(len(block), generator=source), _BATCH):
                rate = _RATE * (1 - epoch / epochs)
                step += 1
                gradients = _gradients(block[picked], y[start + picked], _Fit(*now), lam)
                for part, g, m, s in zip(now, gradients, first, second, strict=True):
                    m.lerp_(g, 0.1)
                    s.mul_(0.999).addcmul_(g, g, value=0.001)
                    scale = (s / (1 - 0.999**step)).sqrt_().add_(1e-8)
                    part.addcdiv_(m, scale, value=-rate / (1 - 0.9**step))
        value = _objective(rows, y, _Fit(*now), lam)
        change, last = abs(last - value) / max(value, 1e-12), value
        if value < least:
            best, least = _Fit(*(part.clone() for part in now)), value
    W = (best.A @ best.B).T.double()
    b = best.b.double()
    return Solution(W - W.mean(1, keepdim=True), b - b.mean(), least, full.iterations + epochs, change < _CHANGE)


def _gradients(x: Tensor, y: Tensor, fit: _Fit, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the mean objective of a batch `(n, D)`."""
    h = x @ fit.B.T
    residual = torch.softmax(h @ fit.A.T + fit.b, 1)
    residual[torch.arange(len(y)), y] -= 1
    residual /= len(y)
    return residual.T @ h + lam * fit.A, (residual @ fit.A).T @ x + lam * fit.B, residual.sum(0)


def _objective(rows: Rows, y: Tensor, fit: _Fit, lam: float) -> float:
    total = 0.0
    for start, x in rows.blocks(8192):
        z = x @ fit.B.T @ fit.A.T + fit.b
        total += float(torch.nn.functional.cross_entropy(z, y[start : start + len(x)], reduction="sum"))
    return total / rows.n + 0.5 * lam * float(fit.A.double().square().sum() + fit.B.double().square().sum())
