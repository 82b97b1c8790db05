"""What the batched softmax solver is made of: losses and slopes in blocks of rows, preconditioner, warm start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 2**20
_FEWEST_ROWS_TO_WARM = 8192
_WARM_EPOCHS, _WARM_BATCH, _WARM_RATE = 4, 512, 0.01
_MOST_FACTOR_ELEMENTS = 2**26


class Problems:
    """M label sets on one X. Weights are `(M, D+1, K)`, the last row the intercept; logits `(N, M, K)`.

    Label sets with fewer classes than the widest have their spare logits masked with -inf.
    """

    def __init__(self, rows: Tensor, codes: Tensor, classes: list[int], penalties: list[float]) -> None:
        self.rows, self.codes, self.classes, self.penalties = rows, codes, classes, penalties
        self.n, self.width = rows.shape
        self.k = max(classes)
        spare = torch.arange(self.k) >= torch.tensor(classes).unsqueeze(1)
        self.mask = torch.zeros(spare.shape, dtype=rows.dtype).masked_fill_(spare, -torch.inf)
        self.lam = torch.tensor(penalties, dtype=torch.float64)
        self.block = max(64, _BLOCK_ELEMENTS // (len(classes) * self.k))

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, keep: Tensor) -> Problems:
        """The chosen label sets, as wide as before."""
        chosen = keep.tolist()
        part = Problems(
            self.rows, self.codes[keep], [self.classes[m] for m in chosen], [self.penalties[m] for m in chosen]
        )
        part.k, part.mask = self.k, self.mask[keep]
        return part

    def logits(self, W: Tensor) -> Tensor:
        """`(N, M, K)`, unmasked."""
        return (self.rows @ W.transpose(0, 1).reshape(self.width, -1)).view(self.n, len(W), self.k)

    def gradient(self, W: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Objectives `(M,)` in float64 and gradients like `W`, from weights and their logits."""
        G = torch.zeros(self.width, len(self) * self.k, dtype=W.dtype)
        loss = torch.zeros(len(self), dtype=torch.float64)
        minus_one = torch.full((1, 1, 1), -1.0, dtype=W.dtype)
        for low in range(0, self.n, self.block):
            y = self.codes[:, low : low + self.block].T.unsqueeze(-1)
            log_p = torch.log_softmax(Z[low : low + self.block], -1)
            loss -= log_p.gather(-1, y).sum((0, 2), dtype=torch.float64)
            residual = log_p.exp_().scatter_add_(-1, y, minus_one.expand(y.shape))
            G.addmm_(self.rows[low : low + self.block].T, residual.view(len(y), -1))
        penalised = W.clone()
        penalised[:, -1] = 0
        lam = self.lam.to(W.dtype).view(-1, 1, 1)
        gradient = G.view(self.width, len(self), self.k).transpose(0, 1) / self.n + lam * penalised
        return loss / self.n + 0.5 * self.lam * penalised.square().sum((1, 2), dtype=torch.float64), gradient

    def along(self, W: Tensor, direction: Tensor, Z: Tensor, ZD: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objective, slope and curvature `(M,)` at `W + step · direction`, from logits alone."""
        value, slope, curvature = (torch.zeros(len(self), dtype=torch.float64) for _ in range(3))
        size = step.to(W.dtype).view(1, -1, 1)
        for low in range(0, self.n, self.block):
            y = self.codes[:, low : low + self.block].T.unsqueeze(-1)
            change = ZD[low : low + self.block]
            log_p = torch.log_softmax(torch.addcmul(Z[low : low + self.block], change, size), -1)
            value -= log_p.gather(-1, y).sum((0, 2), dtype=torch.float64)
            weighted = log_p.exp_().mul_(change)
            mean = weighted.sum(-1)
            slope += (mean - change.gather(-1, y).squeeze(-1)).sum(0, dtype=torch.float64)
            curvature += (weighted.mul_(change).sum(-1) - mean.square()).sum(0, dtype=torch.float64)
        w, d = W[:, :-1], direction[:, :-1]
        ww, wd, dd = ((a * b).sum((1, 2), dtype=torch.float64) for a, b in ((w, w), (w, d), (d, d)))
        value = value / self.n + 0.5 * self.lam * (ww + 2 * step * wd + step * step * dd)
        return value, slope / self.n + self.lam * (wd + step * dd), curvature / self.n + self.lam * dd


@dataclass
class Factors:
    """Cholesky factors `(M, F, D+1, D+1)` of the class blocks of the Hessian; F is K, or 1 shared by all classes."""

    lower: Tensor

    @classmethod
    def sample(cls, problems: Problems, Z: Tensor, source: torch.Generator) -> Factors:
        """Estimate XᵀDiag(p(1-p))X/N + λI from rows drawn in proportion to p(1-p), all rows if there are few."""
        many, width, k = len(problems), problems.width, problems.k
        shared = many * k * width * width > _MOST_FACTOR_ELEMENTS
        factors = 1 if shared else k
        count = max(1024, 2 * width)
        lower = torch.empty(many, factors, width, width, dtype=Z.dtype)
        for m in range(many):
            p = torch.softmax(Z[:, m], -1)
            importance = (p * (1 - p)).T
            importance = importance.mean(0, keepdim=True) if shared else importance
            for f in range(factors):
                block = _weighted_gram(problems.rows, importance[f].contiguous(), count, source)
                ridge = problems.penalties[m] + 1e-5 * float(block.diagonal().mean()) + 1e-9
                block.diagonal().add_(ridge)
                torch.linalg.cholesky(block, out=lower[m, f])
        return cls(lower)

    def take(self, keep: Tensor) -> Factors:
        """The chosen label sets."""
        return Factors(self.lower[keep])

    def solve(self, G: Tensor) -> Tensor:
        """The preconditioner applied to gradients `(M, D+1, K)`."""
        if self.lower.shape[1] == 1:
            return torch.cholesky_solve(G, self.lower[:, 0])
        many, width, k = G.shape
        right = G.transpose(1, 2).reshape(many * k, width, 1)
        solved = torch.cholesky_solve(right, self.lower.view(many * k, width, width))
        return solved.view(many, k, width).transpose(1, 2).contiguous()


def _weighted_gram(rows: Tensor, weights: Tensor, count: int, source: torch.Generator) -> Tensor:
    """`Σ wₙ xₙ xₙᵀ / N`, exactly or from `count` rows by systematic sampling in proportion to their weights."""
    n = len(rows)
    if n <= 2 * count:
        return (rows * (weights / n).unsqueeze(1)).T @ rows
    cumulated = weights.cumsum(0, dtype=torch.float64)
    total = cumulated[-1]
    points = (torch.rand(1, generator=source, dtype=torch.float64) + torch.arange(count)) * (total / count)
    picked = rows[torch.searchsorted(cumulated, points).clamp_max_(n - 1)]
    return (picked.T @ picked).mul_(float(total) / (n * count))


def warm_start(problems: Problems, source: torch.Generator) -> Tensor:
    """`(M, D+1, K)` log class frequencies as intercepts, then Adam with a falling rate when there are many rows."""
    many, width, k, n = len(problems), problems.width, problems.k, problems.n
    counts = torch.stack([torch.bincount(y, minlength=k) for y in problems.codes]).to(problems.rows.dtype)
    V = torch.zeros(width, many, k, dtype=problems.rows.dtype)
    V[-1] = torch.where(problems.mask == 0, (counts / n).clamp_min(1e-6).log(), 0.0)
    if n >= _FEWEST_ROWS_TO_WARM:
        _adam(problems, V.view(width, -1), source)
    return V.transpose(0, 1).contiguous()


def _adam(problems: Problems, V: Tensor, source: torch.Generator) -> None:
    m, s = torch.zeros_like(V), torch.zeros_like(V)
    minus_one = torch.full((1, 1, 1), -1.0, dtype=V.dtype)
    steps = _WARM_EPOCHS * -(-problems.n // _WARM_BATCH)
    step = 0
    for _ in range(_WARM_EPOCHS):
        for picked in torch.split(torch.randperm(problems.n, generator=source), _WARM_BATCH):
            x = problems.rows[picked]
            y = problems.codes[:, picked].T.unsqueeze(-1)
            residual = torch.softmax((x @ V).view(len(x), len(problems), -1) + problems.mask, -1)
            residual.scatter_add_(-1, y, minus_one.expand(y.shape))
            g = (x.T @ residual.view(len(x), -1)).div_(len(x))
            rate = _WARM_RATE * (1 - step / steps)
            step += 1
            m.lerp_(g, 0.1)
            s.mul_(0.999).addcmul_(g, g, value=0.001)
            V.addcdiv_(m, (s / (1 - 0.999**step)).sqrt_().add_(1e-8), value=-rate / (1 - 0.9**step))
