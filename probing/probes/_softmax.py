"""L2 softmax regression of many label sets on one X: the batched solver behind the linear probe.

Objective of label set m: mean log loss + ½ λₘ ‖W‖², intercept free. Label sets are stacked as columns of one product.
What makes it fast: a few epochs of Adam as a warm start; a block-diagonal Newton preconditioner (one Cholesky factor a
class, from rows drawn in proportion to p(1-p)) inside L-BFGS; a line search on cached logits, which costs no product;
products in bfloat16 where the processor has them, each label set's end being judged by its float32 gradient; and
dropping each label set as it converges. Rows may be streamed: then logits are multiplied anew instead of held.

References:
    Nocedal & Wright 2006, *Numerical Optimization*, §§7.2, 8.1; Böhning 1992, Ann. Inst. Statist. Math. 44.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes._rows import Rows
from probing.probes._softmax_parts import Logits, Problems
from probing.probes._softmax_start import Factors, warm_start
from probing.seeds import child_seed

_MEMORY = 8
_REFRESH = 12
_LINE_STEPS = 12
_SLOPE_LEFT = 0.5
_LOSS_FLOOR = 0.05
_LOW_TOLERANCE = 5e-5
_MOST_REFUSALS = 3
_SHARED_CERTAINTY = 0.1  # one factor for all classes promises less than it should


@dataclass(frozen=True)
class Solution:
    """One label set's optimum: `weights` `(D, K)` and `intercept` `(K,)`, centred over classes."""

    weights: Tensor
    intercept: Tensor
    objective: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Stop:
    """When to stop: see `solve`."""

    tolerance: float
    max_iterations: int


def solve(
    rows: Rows,
    codes: list[Tensor],
    classes: list[int],
    penalties: list[float],
    stop: Stop,
    starts: Sequence[Solution] | None = None,
    *,
    warm: bool = True,
) -> list[Solution]:
    """Minimise every label set's objective; label sets go through in groups that fit in memory.

    Args:
        rows: `(N, D)` standardised, float32 or float64; all arithmetic but sums of losses is in this dtype, except
            early products in bfloat16.
        codes: M of `(N,)` int64 in 0 … K-1.
        classes: K of each label set.
        penalties: λ of each label set.
        stop: a label set is done when the decrease that the Newton model still predicts is below `tolerance` of its
            objective (or of 5 % of log K where the objective is below that), the last step gained less than half
            of that, and no gradient entry exceeds 10 times `tolerance`; after `max_iterations` iterations at most.
        starts: solutions to start from, of the same number of classes each.
        warm: whether to begin with Adam where rows are many; not worth it from a start that is near.
    """
    width = rows.width + 1
    each = max(classes) * max(2 * rows.n, min(width * width, rows.budget // max(classes)))
    size = max(1, rows.budget // each) if each <= rows.budget else _streamed_size(rows, max(classes))
    found: list[Solution] = []
    for low in range(0, len(codes), size):
        part = slice(low, low + size)
        problems = Problems(rows, torch.stack(codes[part]), classes[part], penalties[part])
        found += _minimise(problems, stop, None if starts is None else _stacked(problems, starts[part]), warm=warm)
    return found


def _streamed_size(rows: Rows, k: int) -> int:
    """Label sets at a time where logits cannot be held: as many as have their own factors, 1 at least."""
    return max(1, rows.budget // (k * (rows.width + 1) ** 2))


def _stacked(problems: Problems, starts: Sequence[Solution]) -> Tensor:
    W = torch.zeros(len(problems), problems.k, problems.width, dtype=problems.rows.dtype)
    for m, start in enumerate(starts):
        W[m, : start.weights.shape[1], :-1] = start.weights.T
        W[m, : start.weights.shape[1], -1] = start.intercept
    return W


@dataclass
class _State:
    """The label sets still in the batch: places, logits, objectives, gradients, curvature, and the last step's gain."""

    problems: Problems
    place: list[int]
    Z: Logits
    loss: Tensor
    G: Tensor
    factors: Factors
    pairs: list[tuple[Tensor, Tensor]]
    gained: Tensor
    refusals: int = 0

    def take(self, keep: Tensor) -> None:
        """Keep the chosen label sets only."""
        self.place = [self.place[m] for m in keep.tolist()]
        self.problems, self.factors, self.Z = self.problems.take(keep), self.factors.take(keep), self.Z.take(keep)
        self.loss, self.G, self.gained = self.loss[keep], self.G[keep], self.gained[keep]
        self.pairs = [(s[keep], t[keep]) for s, t in self.pairs]

    def direction(self) -> tuple[Tensor, Tensor]:
        """`(M, K, D+1)` where to go, and the slope `(M,)` of the objective there."""
        towards = _direction(self.G, self.pairs, self.factors)
        return towards, _dot(self.G, towards)

    def refine(self, chosen: Tensor) -> None:
        """Logits, objectives and gradients of the chosen label sets from products in full precision."""
        part = self.problems.take(chosen)
        part.low = False
        Z = part.logits(self.Z.weights[chosen])
        self.loss[chosen], self.G[chosen] = part.gradient(Z)
        if self.Z.held is not None and Z.held is not None:
            self.Z.held[chosen] = Z.held


def _minimise(problems: Problems, stop: Stop, start: Tensor | None, *, warm: bool) -> list[Solution]:
    source = torch.Generator().manual_seed(child_seed(0, "softmax"))
    Z = problems.logits(warm_start(problems, source, start) if warm or start is None else start)
    loss, G = problems.gradient(Z)
    factors = Factors.sample(problems, Z.weights, source)
    now = _State(problems, list(range(len(problems))), Z, loss, G, factors, [], torch.full_like(loss, torch.inf))
    done: dict[int, Solution] = {}
    for iteration in range(stop.max_iterations + 1):
        if iteration and iteration % _REFRESH == 0:
            now.factors = Factors.sample(now.problems, now.Z.weights, source)
        last = iteration == stop.max_iterations
        finished, direction, fall = _judged(now, stop, last=last)
        step, ZD = torch.zeros_like(now.loss), None
        if not last and not bool(finished.all()):
            ZD = now.problems.logits(direction, masked=False)
            step = _line_search(now.problems, now.Z, ZD, now.loss, fall)
        stuck = (step == 0) & ~finished
        if now.problems.low and bool(stuck.any()) and not last:
            _leave_low(now)
            stuck = torch.zeros_like(stuck)
        leaving = finished | stuck
        for m in torch.nonzero(leaving | last).flatten().tolist():
            converged = bool(finished[m]) or (bool(stuck[m]) and not last)
            done[now.place[m]] = _solution(now.problems, now.Z.weights, now.loss, m, iteration, converged)
        if last or bool(leaving.all()) or ZD is None:
            break
        _advance(now, direction, ZD, step, leaving)
    return [done[m] for m in sorted(done)]


def _judged(now: _State, stop: Stop, *, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which label sets are done, by gradients in full precision; direction and slope of all."""
    direction, fall = now.direction()
    if not now.problems.low:
        return _is_done(now, fall, stop.tolerance), direction, fall
    seems = _is_done(now, fall, max(stop.tolerance, _LOW_TOLERANCE)) | last
    if not bool(seems.any()):
        return seems, direction, fall
    now.refine(torch.nonzero(seems).flatten())
    direction, fall = now.direction()
    finished = seems & _is_done(now, fall, stop.tolerance)
    now.refusals += int((seems & ~finished).any())
    if now.refusals >= _MOST_REFUSALS or (stop.tolerance < _LOW_TOLERANCE and bool((seems & ~finished).any())):
        _leave_low(now)
        direction, fall = now.direction()
        finished = _is_done(now, fall, stop.tolerance)
    return finished, direction, fall


def _leave_low(now: _State) -> None:
    now.problems.low = False
    now.refine(torch.arange(len(now.place)))


def _is_done(now: _State, fall: Tensor, tolerance: float) -> Tensor:
    floor = _LOSS_FLOOR * math.log(now.problems.k)
    certain = 1.0 if now.factors.lower.shape[1] == now.problems.k else _SHARED_CERTAINTY
    enough = certain * tolerance * now.loss.clamp_min(floor)
    still = now.G.abs().amax((1, 2)) <= 10 * tolerance
    # What the model still promises, and what the last step gave: neither alone can be trusted far from the optimum.
    return still & (-0.5 * fall <= enough) & ((now.gained <= 0.5 * enough) | (-0.5 * fall <= 1e-3 * enough))


def _advance(now: _State, direction: Tensor, ZD: Logits, step: Tensor, leaving: Tensor) -> None:
    """Drop what leaves and take the step with what stays."""
    if bool(leaving.any()):
        keep = torch.nonzero(~leaving).flatten()
        now.take(keep)
        direction, ZD, step = direction[keep], ZD.take(keep), step[keep]
    move = step.to(direction.dtype).view(-1, 1, 1) * direction
    now.Z = now.Z.moved(ZD, now.Z.weights + move, step)
    before = now.loss
    now.loss, new = now.problems.gradient(now.Z)
    now.gained = before - now.loss
    now.pairs = [*now.pairs, (move, new - now.G)][-_MEMORY:]
    now.G = new


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """`(M,)` inner products in float64."""
    return (a * b).sum((1, 2), dtype=torch.float64)


def _direction(G: Tensor, pairs: list[tuple[Tensor, Tensor]], factors: Factors) -> Tensor:
    """`(M, K, D+1)`: the two-loop recursion around the preconditioner, problem by problem."""
    q = G.clone()
    kept = []
    for s, t in reversed(pairs):
        curvature = _dot(s, t)
        rho = torch.where(curvature > 0, 1 / curvature, 0.0)
        a = _dot(s, q) * rho
        q -= a.to(q.dtype).view(-1, 1, 1) * t
        kept.append((s, t, rho, a))
    r = _scaled(q, pairs, factors)
    for s, t, rho, a in reversed(kept):
        b = _dot(t, r) * rho
        r += (a - b).to(r.dtype).view(-1, 1, 1) * s
    ascent = _dot(G, r) <= 0
    if bool(ascent.any()):
        r = torch.where(ascent.view(-1, 1, 1), factors.solve(G)[0], r)
    return r.neg_()


def _scaled(q: Tensor, pairs: list[tuple[Tensor, Tensor]], factors: Factors) -> Tensor:
    """The preconditioner applied to `q`, by the scale it lacks along the last step: it knows no coupling of classes."""
    if not pairs:
        return factors.solve(q)[0]
    s, t = pairs[-1]
    r, solved = factors.solve(q, t)
    bent, curvature = _dot(t, solved), _dot(s, t)
    gamma = torch.where((curvature > 0) & (bent > 0), curvature / bent, 1.0).clamp(0.01, 10.0)
    return r.mul_(gamma.to(r.dtype).view(-1, 1, 1))


def _line_search(problems: Problems, Z: Logits, ZD: Logits, loss: Tensor, fall: Tensor) -> Tensor:
    """`(M,)` steps that lower each convex objective and leave little of its slope; 0 where none does."""
    step = torch.ones_like(loss)
    low, high = torch.zeros_like(loss), torch.full_like(loss, torch.inf)
    best, least = torch.zeros_like(loss), loss.clone()
    for _ in range(_LINE_STEPS):
        value, slope, curvature = problems.along(Z, ZD, step)
        lower = value < least
        best, least = torch.where(lower, step, best), torch.where(lower, value, least)
        enough = (value <= loss) & (slope.abs() <= _SLOPE_LEFT * fall.abs())
        if bool((enough | (fall >= 0)).all()):
            break
        low, high = torch.where(slope < 0, step, low), torch.where(slope >= 0, step, high)
        newton = step - slope / curvature.clamp_min(1e-300)
        middle = torch.where(high.isinf(), 4 * step, 0.5 * (low + high))
        inside = (newton > low) & (newton < high.clamp_max(10 * step)) & newton.isfinite()
        step = torch.where(enough, step, torch.where(inside, newton, middle))
    return best


def _solution(problems: Problems, W: Tensor, loss: Tensor, m: int, iterations: int, converged: bool) -> Solution:
    own = W[m, : problems.classes[m]].T.double()
    centred = own - own.mean(1, keepdim=True)
    saved = own[:-1].square().sum() - centred[:-1].square().sum()
    objective = float(loss[m] - 0.5 * problems.penalties[m] * saved)
    return Solution(centred[:-1], centred[-1], objective, iterations, converged)
