"""Gives the softmax solver its start, the curvature that it divides gradients by, and its steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes._rows import Operand, are_many
from probing.probes._softmax_parts import Logits, Problems

_WARM_BLOCK = 2**16
_WARM_EPOCHS, _WARM_BATCH, _WARM_RATE = 4, 512, 0.01
_SHARED_ROWS = 8192
_SHRINK = 0.15
_WIDE, _ROWS_A_COLUMN = 128, 16
_SMALL_TRIANGLE = 64
_LEVEL_ROWS = 8192
_CHANGED = 1.5  # by what factor p(1-p) must have changed for a new factor to be worth its time


@dataclass
class Factors:
    """Inverses of the Cholesky factors of the Hessian's class blocks; a product by both is always a descent.

    Attributes:
        inverses: `(M, F, D+1, D+1)`, lower triangles; F is K, or 1 shared by all classes.
        levels: `(M, F)` mean p(1-p) of each when it was made, in rows at even distances.
        common: `(D+1, D+1)` lower triangle of the Gram matrix of all rows.
    """

    inverses: Tensor
    levels: Tensor
    common: Tensor

    @classmethod
    def sample(cls, problems: Problems, W: Tensor, source: torch.Generator, old: Factors | None = None) -> Factors:
        """Estimate XᵀDiag(p(1-p))X/N + λI from rows drawn in proportion to p(1-p), all rows if there are few.

        Where rows are drawn, the estimate is shrunk towards the Gram matrix of all rows, scaled: 1,024 rows alone
        say little of hundreds of directions. Of old factors those are kept, and overwritten elsewhere, whose mean
        p(1-p) is still nearly what it was.
        """
        many, width, k = len(problems), problems.width, problems.k
        few = width >= _WIDE and problems.n < _ROWS_A_COLUMN * width  # a factor a class would cost more than it saves
        shared = few or many * k * width * width > problems.rows.budget
        factors = 1 if shared else k
        rows = problems.rows.pilot
        few_rows = rows[:: -(-len(rows) // _LEVEL_ROWS)]
        now = old or cls(
            W.new_zeros(many, factors, width, width),
            W.new_full((many, factors), -1.0),
            _common(rows, width, W.dtype),
        )
        for m in range(many):
            one = problems.take(torch.tensor([m]))
            level = _importance(one, W[m : m + 1], few_rows, shared=shared).mean(1)
            changed = torch.maximum(level, now.levels[m]) > _CHANGED * torch.minimum(level, now.levels[m])
            if not (shared or bool(changed.any())):
                continue
            importance = _importance(one, W[m : m + 1], rows, shared=shared)
            for f in torch.nonzero(changed | shared).flatten().tolist():
                block = _block(rows, importance[f], now.common, source)
                block.diagonal().add_(problems.penalties[m] + 1e-5 * float(block.diagonal().mean()) + 1e-9)
                invert(torch.linalg.cholesky(block), now.inverses[m, f])
                now.levels[m, f] = level[f]
        return now

    def take(self, keep: Tensor) -> Factors:
        """Return the factors of the chosen label sets."""
        return Factors(self.inverses[keep], self.levels[keep], self.common)

    def solve(self, *parts: Tensor) -> list[Tensor]:
        """Apply the preconditioner to each of some gradients `(M, K, D+1)`: the factors are read once for all."""
        many, k, width = parts[0].shape
        shared = self.inverses.shape[1] == 1
        right = torch.cat(parts, 1) if shared else torch.stack(parts, 2).view(many * k, len(parts), width)
        inverses = self.inverses.view(-1, width, width)
        solved = right @ inverses.mT @ inverses
        if shared:
            return [part.contiguous() for part in torch.split(solved, k, 1)]
        return [part.reshape(many, k, width) for part in solved.unbind(1)]


def _importance(problems: Problems, W: Tensor, rows: Tensor, *, shared: bool) -> Tensor:
    """Return p(1-p) of one label set, `(F, n)`, the classes' mean if they share a factor."""
    p = torch.softmax(problems.product(W, Operand(rows))[0], 0)
    importance = p.mul_(1 - p)
    return importance.mean(0, keepdim=True) if shared else importance


def _block(rows: Tensor, importance: Tensor, common: Tensor, source: torch.Generator) -> Tensor:
    """Return the lower triangle of one class block."""
    count = max(1024, 2 * len(common))
    block = weighted_gram(rows, importance, count, source)
    if len(rows) > 2 * count:
        block.mul_(1 - _SHRINK).add_(common, alpha=_SHRINK * float(importance.mean()))
    return block


def invert(lower: Tensor, to: Tensor) -> None:
    """Write the inverse of a lower triangle `(D, D)`, by halves, as products; above the diagonal `to` is left alone."""
    n = len(lower)
    if n <= _SMALL_TRIANGLE:
        to.copy_(torch.linalg.solve_triangular(lower, torch.eye(n, dtype=lower.dtype), upper=False))
        return
    h = n // 2
    invert(lower[:h, :h], to[:h, :h])
    invert(lower[h:, h:], to[h:, h:])
    to[h:, :h] = (to[h:, h:] @ lower[h:, :h]).neg_() @ to[:h, :h]


def _common(rows: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return the Gram matrix, over N, of rows at even distances with the column of ones, `(D+1, D+1)`."""
    count = min(len(rows), max(_SHARED_ROWS, 4 * width))
    picked = with_ones(rows[torch.arange(count) * len(rows) // count].to(dtype))
    return gram(picked).div_(count)


def gram(rows: Tensor) -> Tensor:
    """Return the lower triangle of `XᵀX` for X `(n, D)`, by strips, which saves a third of the products."""
    width = rows.shape[1]
    found = rows.new_zeros(width, width)
    for low in range(0, width, max(64, -(-width // 3))):
        high = min(width, low + max(64, -(-width // 3)))
        found[low:high, :high] = rows[:, low:high].T @ rows[:, :high]
    return found


def with_ones(rows: Tensor) -> Tensor:
    """Return the rows with a last column of ones, `(n, D+1)`."""
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def weighted_gram(rows: Tensor, weights: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Return the lower triangle of `Σ wₙ xₙ xₙᵀ / N`, exactly or from `count` rows drawn systematically by weight."""
    n = len(rows)
    if n <= 2 * count:
        all_rows = with_ones(rows.to(weights.dtype))
        return gram(all_rows * (weights / n).sqrt().unsqueeze(1))
    cumulated = weights.cumsum(0, dtype=torch.float64)
    total = cumulated[-1]
    points = (torch.rand(1, generator=source, dtype=torch.float64) + torch.arange(count)) * (total / count)
    picked = with_ones(rows.index_select(0, torch.searchsorted(cumulated, points).clamp_max_(n - 1)).to(weights.dtype))
    return gram(picked).mul_(float(total) / (n * count))


def warm_start(problems: Problems, source: torch.Generator, start: Tensor | None = None) -> Tensor:
    """Return a start `(M, K, D+1)`: the given one, or log class frequencies as intercepts; then Adam, rate falling,
    when rows are many.
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
            for picked in torch.split(torch.randperm(len(rows), generator=source), _WARM_BATCH):
                x, y = rows.index_select(0, picked), problems.codes.index_select(1, start + picked).unsqueeze(1)
                p = torch.softmax(problems.product(W, Operand(x)), 1).scatter_add_(1, y, minus_one.expand(y.shape))
                residual = p.view(len(flat), -1) / len(x)
                flat[:, :-1], flat[:, -1] = residual.to(x.dtype) @ x, residual.sum(1)
                rate = _WARM_RATE * (1 - seen / total)
                step, seen = step + 1, seen + len(x)
                m.lerp_(g, 0.1)
                s.mul_(0.999).addcmul_(g, g, value=0.001)
                W.addcdiv_(m, (s / (1 - 0.999**step)).sqrt_().add_(1e-8), value=-rate / (1 - 0.9**step))


_LINE_STEPS = 12
_SLOPE_LEFT = 0.5


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products, `(M,)` float64."""
    return (a * b).sum((1, 2), dtype=torch.float64)


def search_direction(G: Tensor, pairs: list[tuple[Tensor, Tensor]], factors: Factors) -> Tensor:
    """Return the direction `(M, K, D+1)` by the two-loop recursion around the preconditioner, problem by problem."""
    q = G.clone()
    kept = []
    for s, t in reversed(pairs):
        curvature = dot(s, t)
        rho = torch.where(curvature > 0, 1 / curvature, 0.0)
        a = dot(s, q) * rho
        q -= a.to(q.dtype).view(-1, 1, 1) * t
        kept.append((s, t, rho, a))
    r = _scaled(q, pairs, factors)
    for s, t, rho, a in reversed(kept):
        b = dot(t, r) * rho
        r += (a - b).to(r.dtype).view(-1, 1, 1) * s
    ascent = dot(G, r) <= 0
    if bool(ascent.any()):
        r = torch.where(ascent.view(-1, 1, 1), factors.solve(G)[0], r)
    return r.neg_()


def _scaled(q: Tensor, pairs: list[tuple[Tensor, Tensor]], factors: Factors) -> Tensor:
    """Apply the preconditioner to `q`, by the scale it lacks along the last step: it knows no coupling of classes."""
    if not pairs:
        return factors.solve(q)[0]
    s, t = pairs[-1]
    r, solved = factors.solve(q, t)
    bent, curvature = dot(t, solved), dot(s, t)
    gamma = torch.where((curvature > 0) & (bent > 0), curvature / bent, 1.0).clamp(0.01, 10.0)
    return r.mul_(gamma.to(r.dtype).view(-1, 1, 1))


def accepts_step(value: Tensor, before: Tensor, slope: Tensor, fall: Tensor) -> Tensor:
    """Return whether a step lowers the objective and leaves little of its slope, `(M,)`."""
    return (value <= before) & (slope.abs() <= _SLOPE_LEFT * fall.abs())


def line_search(
    problems: Problems, Z: Logits, ZD: Logits, before: Tensor, fall: Tensor, unit: tuple[Tensor, Tensor]
) -> Tensor:
    """Return steps `(M,)` that lower each convex objective and leave little of its slope; 0 where none does.

    Args:
        problems: M of them.
        Z: logits one unit step on.
        ZD: logits of the direction.
        before: objectives before the step.
        fall: slopes there.
        unit: objectives and slopes one unit step on.
    """
    value, slope = unit
    curvature = slope - fall
    step = torch.ones_like(before)
    low, high = torch.zeros_like(before), torch.full_like(before, torch.inf)
    best, least = torch.zeros_like(before), before.clone()
    for number in range(_LINE_STEPS):
        if number:
            value, slope, curvature = problems.along(Z, ZD, step - 1)
        lower = value < least
        best, least = torch.where(lower, step, best), torch.where(lower, value, least)
        enough = accepts_step(value, before, slope, fall)
        if bool((enough | (fall >= 0)).all()):
            break
        low, high = torch.where(slope < 0, step, low), torch.where(slope >= 0, step, high)
        newton = step - slope / curvature.clamp_min(1e-300)
        middle = torch.where(high.isinf(), 4 * step, 0.5 * (low + high))
        inside = (newton > low) & (newton < high.clamp_max(10 * step)) & newton.isfinite()
        step = torch.where(enough, step, torch.where(inside, newton, middle))
    return best
