"""Starting points, search directions and step sizes of the softmax solver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from probing.probes._rows import Operand, are_many
from probing.probes._softmax_curvature import Curvature
from probing.probes._softmax_parts import Logits, Problems

_WARM_BLOCK = 2**16
_WARM_EPOCHS, _WARM_BATCH, _WARM_RATE = 4, 512, 0.01


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


@contextmanager
def one_thread(is_small: bool) -> Iterator[None]:
    """Return a context manager within which torch computes on one thread if the problem is small."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if is_small else before)
        yield
    finally:
        torch.set_num_threads(before)


_LINE_STEPS = 12
_SLOPE_LEFT = 0.9


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of a and b for each label set, `(M,)` float64."""
    return (a * b).sum((1, 2), dtype=torch.float64)


class Remembered(NamedTuple):
    """A step that L-BFGS remembers, with what each later iteration needs of it.

    Attributes:
        step: change of the weights, `(M, K, D+1)`.
        change: change of the gradient, `(M, K, D+1)`.
        curvature: their inner products, `(M,)` float64.
        rho: 1 / curvature, 0 where that is not positive.
    """

    step: Tensor
    change: Tensor
    curvature: Tensor
    rho: Tensor

    @classmethod
    def of(cls, step: Tensor, change: Tensor) -> Remembered:
        """Return the step and the change of the gradient with their curvature."""
        curvature = dot(step, change)
        return cls(step, change, curvature, torch.where(curvature > 0, 1 / curvature, 0.0))

    def take(self, keep: Tensor) -> Remembered:
        """Return the steps of the chosen label sets."""
        return Remembered(*(part[keep] for part in self))


def search_direction(G: Tensor, steps: list[Remembered], factors: Curvature) -> Tensor:
    """Return the L-BFGS search direction `(M, K, D+1)` of each label set, by the two-loop recursion with the
    preconditioner in its middle.
    """
    q = G.clone()
    shares = []
    for step, change, _, rho in reversed(steps):
        a = dot(step, q) * rho
        q -= a.to(q.dtype).view(-1, 1, 1) * change
        shares.append(a)
    r = _scaled(q, steps, factors)
    for (step, change, _, rho), a in zip(steps, reversed(shares), strict=True):
        b = dot(change, r) * rho
        r += (a - b).to(r.dtype).view(-1, 1, 1) * step
    ascent = dot(G, r) <= 0
    if bool(ascent.any()):
        r = torch.where(ascent.view(-1, 1, 1), factors.solve(G)[0], r)
    return r.neg_()


def _scaled(q: Tensor, steps: list[Remembered], factors: Curvature) -> Tensor:
    """Apply the preconditioner to `q`, by the scale it lacks along the last step: it knows no coupling of classes."""
    if not steps:
        return factors.solve(q)[0]
    _, change, curvature, _ = steps[-1]
    r, solved = factors.solve(q, change)
    bent = dot(change, solved)
    gamma = torch.where((curvature > 0) & (bent > 0), curvature / bent, 1.0).clamp(0.01, 10.0)
    return r.mul_(gamma.to(r.dtype).view(-1, 1, 1))


def accepts_step(value: Tensor, before: Tensor, slope: Tensor, fall: Tensor) -> Tensor:
    """Return, for each label set `(M,)`, whether a step does not raise the objective and leaves at most 90 % of the
    slope (a strong Wolfe condition).
    """
    return (value <= before) & (slope.abs() <= _SLOPE_LEFT * fall.abs())


def line_search(
    problems: Problems, Z: Logits, ZD: Logits, before: Tensor, fall: Tensor, unit: tuple[Tensor, Tensor]
) -> Tensor:
    """Search along the direction and return step sizes `(M,)`: the one with the lowest objective tried, 0 if none
    lowers it. The search ends when all label sets meet `accepts_step`, after 12 trials at most.

    Args:
        problems: the M label sets.
        Z: logits after a step of size 1.
        ZD: logits of the direction.
        before: objectives before the step, `(M,)`.
        fall: slopes before the step, `(M,)`.
        unit: objectives and slopes after a step of size 1.
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
