"""L2 softmax regression of many label sets on one X: the batched solver behind the linear probe.

Objective of label set m: mean log loss + ½ λₘ ‖W‖², intercept free. Label sets are stacked as columns of one product.
Four things make it fast: a few epochs of Adam as a warm start; a block-diagonal Newton preconditioner (one Cholesky
factor a class, from rows drawn in proportion to p(1-p)) inside L-BFGS; a line search on cached logits, which costs no
product; and dropping each label set as it converges.

References:
    Nocedal & Wright 2006, *Numerical Optimization*, §§7.2, 8.1; Böhning 1992, Ann. Inst. Statist. Math. 44.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes._softmax_parts import Factors, Problems, warm_start
from probing.seeds import child_seed

_MEMORY = 8
_REFRESH = 12
_LINE_STEPS = 12
_LOSS_FLOOR = 0.05
_MOST_ELEMENTS = 2**26


@dataclass(frozen=True)
class Solution:
    """One label set's optimum: `weights` `(D, K)` and `intercept` `(K,)`, centred over classes."""

    weights: Tensor
    intercept: Tensor
    objective: float
    iterations: int
    converged: bool


def solve(
    X: Tensor, codes: list[Tensor], classes: list[int], penalties: list[float], *, tolerance: float, max_iterations: int
) -> list[Solution]:
    """Minimise every label set's objective; label sets go through in groups that fit in memory.

    Args:
        X: `(N, D)` standardised rows, float32 or float64; all arithmetic but sums of losses is in this dtype.
        codes: M of `(N,)` int64 in 0 … K-1.
        classes: K of each label set.
        penalties: λ of each label set.
        tolerance: a label set is done when the decrease that the Newton model still predicts is below this fraction
            of its objective (or of 5 % of log K where the objective is below that), and no gradient entry exceeds 10
            times it.
        max_iterations: L-BFGS iterations at most.
    """
    n, width = X.shape
    rows = torch.cat([X, X.new_ones(n, 1)], dim=1)
    each = max(classes) * max(2 * n, min(width * width, _MOST_ELEMENTS // max(classes)))
    size = max(1, _MOST_ELEMENTS // each)
    found: list[Solution] = []
    for low in range(0, len(codes), size):
        part = slice(low, low + size)
        problems = Problems(rows, torch.stack(codes[part]), classes[part], penalties[part])
        found += _minimise(problems, tolerance, max_iterations)
    return found


def _minimise(problems: Problems, tolerance: float, max_iterations: int) -> list[Solution]:
    source = torch.Generator().manual_seed(child_seed(0, "softmax"))
    W = warm_start(problems, source)
    Z = problems.logits(W)
    Z += problems.mask
    loss, G = problems.gradient(W, Z)
    factors = Factors.sample(problems, Z, source)
    pairs: list[tuple[Tensor, Tensor]] = []
    place = list(range(len(problems)))
    done: dict[int, Solution] = {}
    floor = _LOSS_FLOOR * math.log(problems.k)
    for iteration in range(max_iterations + 1):
        if iteration and iteration % _REFRESH == 0:
            factors = Factors.sample(problems, Z, source)
        direction = _direction(G, pairs, factors)
        fall = _dot(G, direction)
        small = G.abs().amax((1, 2)) <= 10 * tolerance
        finished = (-0.5 * fall <= tolerance * loss.clamp_min(floor)) & small
        step = torch.zeros_like(loss)
        if iteration < max_iterations and not bool(finished.all()):
            ZD = problems.logits(direction)
            step = _line_search(problems, W, direction, Z, ZD, loss, fall)
        stuck = (step == 0) & ~finished
        leaving = finished | stuck
        for m in torch.nonzero(leaving | (iteration == max_iterations)).flatten().tolist():
            converged = bool(finished[m]) or (bool(stuck[m]) and iteration < max_iterations)
            done[place[m]] = _solution(problems, W, loss, m, iteration, converged)
        if iteration == max_iterations or bool(leaving.all()):
            break
        if bool(leaving.any()):
            keep = torch.nonzero(~leaving).flatten()
            place = [place[m] for m in keep.tolist()]
            problems, factors = problems.take(keep), factors.take(keep)
            W, Z, ZD, G, direction = W[keep], Z[:, keep], ZD[:, keep], G[keep], direction[keep]
            step = step[keep]
            pairs = [(s[keep], t[keep]) for s, t in pairs]
        move = step.to(W.dtype).view(-1, 1, 1) * direction
        W = W + move
        Z = Z.addcmul_(ZD, step.to(W.dtype).view(1, -1, 1))
        loss, new = problems.gradient(W, Z)
        pairs = [*pairs, (move, new - G)][-_MEMORY:]
        G = new
    return [done[m] for m in sorted(done)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """`(M,)` inner products in float64."""
    return (a * b).sum((1, 2), dtype=torch.float64)


def _direction(G: Tensor, pairs: list[tuple[Tensor, Tensor]], factors: Factors) -> Tensor:
    """`(M, D+1, K)`: the two-loop recursion around the preconditioner, problem by problem."""
    q = G.clone()
    kept = []
    for s, t in reversed(pairs):
        curvature = _dot(s, t)
        rho = torch.where(curvature > 0, 1 / curvature, 0.0)
        a = _dot(s, q) * rho
        q -= a.to(q.dtype).view(-1, 1, 1) * t
        kept.append((s, t, rho, a))
    r = factors.solve(q)
    for s, t, rho, a in reversed(kept):
        b = _dot(t, r) * rho
        r += (a - b).to(r.dtype).view(-1, 1, 1) * s
    ascent = _dot(G, r) <= 0
    if bool(ascent.any()):
        r = torch.where(ascent.view(-1, 1, 1), factors.solve(G), r)
    return r.neg_()


def _line_search(
    problems: Problems, W: Tensor, direction: Tensor, Z: Tensor, ZD: Tensor, loss: Tensor, fall: Tensor
) -> Tensor:
    """`(M,)` steps that lower each convex objective and leave less than half of its slope; 0 where none does."""
    step = torch.ones_like(loss)
    low, high = torch.zeros_like(loss), torch.full_like(loss, torch.inf)
    best, least = torch.zeros_like(loss), loss.clone()
    for _ in range(_LINE_STEPS):
        value, slope, curvature = problems.along(W, direction, Z, ZD, step)
        lower = value < least
        best, least = torch.where(lower, step, best), torch.where(lower, value, least)
        enough = (value <= loss) & (slope.abs() <= 0.5 * fall.abs())
        if bool((enough | (fall >= 0)).all()):
            break
        low, high = torch.where(slope < 0, step, low), torch.where(slope >= 0, step, high)
        newton = step - slope / curvature.clamp_min(1e-300)
        middle = torch.where(high.isinf(), 4 * step, 0.5 * (low + high))
        inside = (newton > low) & (newton < high.clamp_max(10 * step)) & newton.isfinite()
        step = torch.where(enough, step, torch.where(inside, newton, middle))
    return best


def _solution(problems: Problems, W: Tensor, loss: Tensor, m: int, iterations: int, converged: bool) -> Solution:
    own = W[m, :, : problems.classes[m]].double()
    centred = own - own.mean(1, keepdim=True)
    saved = own[:-1].square().sum() - centred[:-1].square().sum()
    objective = float(loss[m] - 0.5 * problems.penalties[m] * saved)
    return Solution(centred[:-1], centred[-1], objective, iterations, converged)
