"""Objectives, gradients and slopes of the batched softmax solver, summed over all rows block by block, and the weights
that it starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes._rows import Multiplied, Operand, Rows, are_many

_BLOCK_ELEMENTS = 2**18
_WARM_BLOCK = 2**16
_WARM_EPOCHS, _WARM_BATCH, _WARM_RATE = 4, 512, 0.01


@dataclass
class Logits:
    """Holds the logits of all rows under weights `(M, K, D+1)`: `held` is `(M, K, N)`, or None if they are recomputed
    block by block.

    `masked` is False for the logits of a search direction: those of unused classes are 0 and not -inf.
    """

    weights: Tensor
    held: Tensor | None
    masked: bool = True

    def moved(self, change: Logits, step: Tensor) -> Logits:
        """Add `step` `(M,)` times `change` to these logits and their weights, in place, and return them."""
        size = step.to(self.weights.dtype).view(-1, 1, 1)
        self.weights.addcmul_(change.weights, size)
        if self.held is not None and change.held is not None:
            self.held.addcmul_(change.held, size)
        return self

    def put(self, chosen: Tensor, part: Logits) -> None:
        """Replace the logits of the label sets `chosen` by those of `part`."""
        self.weights[chosen] = part.weights
        if self.held is not None and part.held is not None:
            self.held[chosen] = part.held

    def take(self, keep: Tensor) -> Logits:
        """Return the logits of the label sets `keep`."""
        return Logits(self.weights[keep], None if self.held is None else self.held[keep], self.masked)


class Problems:
    """Holds M label sets on one X. Weights are `(M, K, D+1)`, with the intercept in the last column; logits are `(M, K,
    N)`.

    Rows are the last axis of all that is computed from them, so that a softmax runs along contiguous vectors. Label
    sets with fewer than K classes have their unused logits masked with -inf.
    """

    def __init__(self, rows: Rows, codes: Tensor, classes: list[int], penalties: list[float]) -> None:
        self.rows, self.codes, self.classes, self.penalties = rows, codes, classes, penalties
        self.n, self.width, self.k = rows.n, rows.width + 1, max(classes, default=0)
        self.mask = self._mask(self.k)
        self.lam = torch.tensor(penalties, dtype=torch.float64)
        self.low = rows.has_low
        self.holds = self.n * len(classes) * self.k <= rows.budget

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def block(self) -> int:
        """Number of rows of a block, small enough that its logits stay in the processor's cache."""
        return max(64, _BLOCK_ELEMENTS // (len(self) * self.k))

    def take(self, keep: Tensor) -> Problems:
        """Return the problems of the label sets `keep`, with K unchanged."""
        chosen = keep.tolist()
        classes, penalties = ([one[m] for m in chosen] for one in (self.classes, self.penalties))
        part = Problems(self.rows, self.codes[keep], list(classes), list(penalties))
        part.k, part.mask, part.low, part.holds = self.k, self.mask[keep], self.low, self.holds
        return part

    def logits(self, W: Tensor, *, masked: bool = True) -> Logits:
        """Return the logits of all rows under weights W `(M, K, D+1)`."""
        if not self.holds:
            return Logits(W, None, masked)
        held = torch.empty(len(W), self.k, self.n, dtype=W.dtype)
        for start, x in self.rows.operands(self.block, low=self.low):
            held[:, :, start : start + len(x)] = self.product(W, x, masked=masked)
        return Logits(W, held, masked)

    def product(self, W: Tensor, x: Multiplied, *, masked: bool = True) -> Tensor:
        """Return the logits of the n rows `x` under weights W, `(M, K, n)`."""
        z = self.product_to(W.new_empty(len(W), self.k, len(x)), W, x)
        return z.add_(self.mask) if masked else z

    def product_to(self, z: Tensor, W: Tensor, x: Multiplied) -> Tensor:
        """Write the logits of the n rows `x`, without the mask, to `z` `(M, K, n)`, and return it."""
        flat = W.reshape(-1, self.width)
        x.logits(flat[:, :-1], z.view(len(flat), -1), flat[:, -1:])
        return z

    def stepped(self, Z: Logits, direction: Tensor) -> tuple[Logits, Logits, Tensor, Tensor]:
        """Take a step of size 1 along `direction`. Return the logits after it (held logits are moved in place), the
        logits of the direction, and the objectives and gradients after the step.
        """
        change = Logits(direction, None if Z.held is None else torch.empty_like(Z.held), masked=False)
        there = Logits(Z.weights + direction, Z.held)
        return there, change, *self.gradient(there, change)

    def gradient(self, Z: Logits, change: Logits | None = None) -> tuple[Tensor, Tensor]:
        """Return the objectives `(M,)` in float64, and the gradients, of the shape of the weights.

        If `change` is given, its held logits are computed and added to those of `Z` in the same pass, while the rows
        are in the processor's cache.
        """
        W = Z.weights
        G = torch.zeros(len(self) * self.k, self.width, dtype=W.dtype)
        loss = torch.zeros(len(self), dtype=torch.float64)
        minus_one = torch.full((1, 1, 1), -1.0, dtype=W.dtype)
        for start, x in self.rows.operands(self.block, low=self.low):
            y = self.codes[:, start : start + len(x)].unsqueeze(1)
            z = self._at(Z, start, x)
            if change is not None and change.held is not None:
                z.add_(self.product_to(change.held[:, :, start : start + len(x)], change.weights, x))
            p, own, total = _softmax(z, y)
            loss += (total.log_() - own).sum((1, 2), dtype=torch.float64)
            residual = p.scatter_add_(1, y, minus_one.expand(y.shape)).view(len(G), -1)
            G[:, -1] += residual.sum(1)
            x.add_gradient(residual, G[:, :-1])
        penalised = W.clone()
        penalised[..., -1] = 0
        gradient = G.view_as(W) / self.n + self.lam.to(W.dtype).view(-1, 1, 1) * penalised
        return loss / self.n + 0.5 * self.lam * penalised.square().sum((1, 2), dtype=torch.float64), gradient

    def along(self, Z: Logits, ZD: Logits, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return objective, slope and curvature, each `(M,)`, at `step` along the direction `ZD`; no rows are read if
        the logits are held.
        """
        value, slope, curvature = (torch.zeros(len(self), dtype=torch.float64) for _ in range(3))
        size = step.to(Z.weights.dtype).view(-1, 1, 1)
        for start, z, change in self._pairs(Z, ZD):
            y = self.codes[:, start : start + z.shape[-1]].unsqueeze(1)
            p, own, total = _softmax(torch.addcmul(z, change, size), y)
            value += (total.log_() - own).sum((1, 2), dtype=torch.float64)
            mean = p.mul_(change).sum(1, keepdim=True)
            slope += (mean - change.gather(1, y)).sum((1, 2), dtype=torch.float64)
            curvature += (p.mul_(change).sum(1, keepdim=True) - mean.square_()).sum((1, 2), dtype=torch.float64)
        w, d = Z.weights[..., :-1], ZD.weights[..., :-1]
        ww, wd, dd = ((a * b).sum((1, 2), dtype=torch.float64) for a, b in ((w, w), (w, d), (d, d)))
        value = value / self.n + 0.5 * self.lam * (ww + 2 * step * wd + step * step * dd)
        return value, slope / self.n + self.lam * (wd + step * dd), curvature / self.n + self.lam * dd

    def _pairs(self, Z: Logits, ZD: Logits) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield, block by block, logits and those of a direction; no row is read where both are held."""
        if Z.held is not None and ZD.held is not None:
            for start in range(0, self.n, self.block):
                part = slice(start, start + self.block)
                yield start, Z.held[:, :, part], ZD.held[:, :, part]
            return
        for start, x in self.rows.operands(self.block, low=self.low):
            yield start, self._at(Z, start, x), self._at(ZD, start, x)

    def _at(self, Z: Logits, start: int, x: Multiplied) -> Tensor:
        if Z.held is None:
            return self.product(Z.weights, x, masked=Z.masked)
        return Z.held[:, :, start : start + len(x)]

    def _mask(self, k: int) -> Tensor:
        spare = torch.arange(k) >= torch.tensor(self.classes).unsqueeze(1)
        return torch.zeros(spare.shape, dtype=self.rows.dtype).masked_fill_(spare, -torch.inf).unsqueeze(-1)


def _softmax(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities `(M, K, n)`, each row's own logit less its largest, and the sum of the exponentials of
    all its logits less the largest; `own - log total` is its log probability.
    """
    z = z - z.amax(1, keepdim=True)
    own = z.gather(1, y)
    p = z.exp_()
    total = p.sum(1, keepdim=True)
    return p.div_(total), own, total


def warm_start(problems: Problems, source: torch.Generator, start: Tensor | None = None) -> Tensor:
    """Return a starting point `(M, K, D+1)`: `start`, or weights 0 with log class frequencies as intercepts. If there
    are many rows, it is improved by a few epochs of Adam with a falling rate.
    """
    W = _frequencies(problems) if start is None else start
    if are_many(problems.n, problems.width - 1):
        _adam(problems, W, source)
    return W


def _frequencies(problems: Problems) -> Tensor:
    counts = torch.stack([torch.bincount(y, minlength=problems.k) for y in problems.codes])
    W = torch.zeros(len(problems), problems.k, problems.width, dtype=problems.rows.dtype)
    shares = (counts.to(W.dtype) / problems.n).clamp_min(1e-6)
    W[..., -1] = torch.where(problems.mask[..., 0] == 0, shares.log(), 0.0)
    return W


def _adam(problems: Problems, W: Tensor, source: torch.Generator) -> None:
    """Improve W by Adam. Rows are shuffled within blocks of 65,536, or of what a store gives at once."""
    m, s, g = torch.zeros_like(W), torch.zeros_like(W), torch.zeros_like(W)
    flat = g.view(-1, problems.width)
    minus_one = torch.full((1, 1, 1), -1.0, dtype=W.dtype)
    seen, total = 0, _WARM_EPOCHS * problems.n
    step = 0
    for _ in range(_WARM_EPOCHS):
        for start, rows in problems.rows.blocks(_WARM_BLOCK, low=problems.low):
            for picked in torch.split(
                torch.randperm(len(rows), generator=source, device="cpu").to(rows.device), _WARM_BATCH
            ):
                x, y = rows.index_select(0, picked), problems.codes.index_select(1, start + picked).unsqueeze(1)
                p = torch.softmax(problems.product(W, Operand(x)), 1).scatter_add_(1, y, minus_one.expand(y.shape))
                residual = p.view(len(flat), -1) / len(x)
                flat[:, :-1], flat[:, -1] = residual.to(x.dtype) @ x, residual.sum(1)
                rate = _WARM_RATE * (1 - seen / total)
                step, seen = step + 1, seen + len(x)
                m.lerp_(g, 0.1)
                s.mul_(0.999).addcmul_(g, g, value=0.001)
                W.addcdiv_(m, (s / (1 - 0.999**step)).sqrt_().add_(1e-8), value=-rate / (1 - 0.9**step))
