"""The direction in which the softmax solver goes from a point, and how far it goes."""

from __future__ import annotations

import torch
from torch import Tensor

from probing.probes._softmax_parts import Logits, Problems
from probing.probes._softmax_start import Factors

_LINE_STEPS = 12
_SLOPE_LEFT = 0.5


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products, `(M,)` float64."""
    return (a * b).sum((1, 2), dtype=torch.float64)


def towards(G: Tensor, pairs: list[tuple[Tensor, Tensor]], factors: Factors) -> Tensor:
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


def serves(value: Tensor, before: Tensor, slope: Tensor, fall: Tensor) -> Tensor:
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
        enough = serves(value, before, slope, fall)
        if bool((enough | (fall >= 0)).all()):
            break
        low, high = torch.where(slope < 0, step, low), torch.where(slope >= 0, step, high)
        newton = step - slope / curvature.clamp_min(1e-300)
        middle = torch.where(high.isinf(), 4 * step, 0.5 * (low + high))
        inside = (newton > low) & (newton < high.clamp_max(10 * step)) & newton.isfinite()
        step = torch.where(enough, step, torch.where(inside, newton, middle))
    return best
