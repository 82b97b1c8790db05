"""L2 softmax regression of many label sets on one X: the batched solver behind the linear probe.

The objective of label set m is the mean log loss + ½ λₘ ‖W‖², with the intercept unpenalised. The weights of all label
sets are stacked, so that one matrix product serves them all. The solver is L-BFGS with a preconditioner: either a
low-rank one, computed once for all label sets, or one Cholesky factor per class, as the cost model of
`_softmax_curvature` decides. If there are many rows, a few epochs of Adam come first. A step costs one pass over the
rows, which computes logits, objective and gradient at step size 1, block by block. Only label sets for which that step
size fails get a line search, which reuses the logits and needs no further product. Products are in bfloat16 where the
processor has it; convergence is judged by the float32 gradient. Label sets are dropped as they converge. Rows may be
streamed; logits are then recomputed instead of stored.

References:
    Nocedal & Wright 2006, *Numerical Optimization*, §§7.2, 8.1; Böhning 1992, Ann. Inst. Statist. Math. 44.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from probing.probes._rows import Rows
from probing.probes._softmax_curvature import Costs, Curvature, curvature, firmer, label_sets_at_once, renewed
from probing.probes._softmax_parts import Logits, Problems, warm_start
from probing.seeds import child_seed

_MEMORY = 8
_SMALL_PASS = 2**26  # multiplications that two threads do no sooner than one, as each waits for the other
_LOSS_FLOOR = 0.05
_LOW_TOLERANCE = 5e-5
_MOST_REFUSALS = 3
_MOST_RESTARTS = 2
_LINE_STEPS = 12
_SLOPE_LEFT = 0.9


@dataclass(frozen=True)
class Solution:
    """Holds the solution for one label set: `weights` `(D, K)` and `intercept` `(K,)`, both centred over classes."""

    weights: Tensor
    intercept: Tensor
    objective: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Stop:
    """Conditions at which the solver stops: see `solve`."""

    tolerance: float
    max_iterations: int


def solve(
    rows: Rows,
    codes: list[Tensor],
    classes: list[int],
    penalties: list[float],
    stop: Stop,
    starts: Sequence[Solution] | None = None,
) -> list[Solution]:
    """Minimise the objective of every label set and return the solutions; label sets are solved in groups that fit in
    memory.

    Args:
        rows: `(N, D)` standardised, float32 or float64; all arithmetic is in this dtype, except sums of losses
            (float64) and early products (bfloat16).
        codes: for each of M label sets, `(N,)` int64 class codes in 0 … K-1.
        classes: number of classes K of each label set.
        penalties: λ of each label set.
        stop: a label set is done when three conditions hold: the decrease that the Newton model still predicts is below
            `tolerance` times its objective (or times 5 % of log K, if that is larger); the last step gained less than
            half of that (or a thousandth of that is predicted); and no gradient entry exceeds 10 times `tolerance`. It
            also stops after `max_iterations` iterations.
        starts: solutions to start from, with the same numbers of classes.
    """
    if rows.device.type != "cpu" and torch.get_default_device() != rows.device:
        with rows.device:  # all that is made on the way is made there
            return solve(rows, [one.to(rows.device) for one in codes], classes, penalties, stop, starts)
    with _one_thread(Costs.of(rows, len(codes), max(classes)).a_pass < _SMALL_PASS):
        return _solve(rows, codes, classes, penalties, stop, starts)


def _solve(
    rows: Rows,
    codes: list[Tensor],
    classes: list[int],
    penalties: list[float],
    stop: Stop,
    starts: Sequence[Solution] | None,
) -> list[Solution]:
    size = label_sets_at_once(rows, len(codes), max(classes))
    found: list[Solution] = []
    for low in range(0, len(codes), size):
        part = slice(low, low + size)
        problems = Problems(rows, torch.stack(codes[part]), classes[part], penalties[part])
        found += _minimise(problems, stop, None if starts is None else _stacked(problems, starts[part]))
    return found


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
    factors: Curvature
    steps: list[_Remembered]
    gained: Tensor
    refusals: int = 0
    restarts: int = 0

    def take(self, keep: Tensor) -> None:
        """Keep the chosen label sets only."""
        self.place = [self.place[m] for m in keep.tolist()]
        self.problems, self.factors, self.Z = self.problems.take(keep), self.factors.take(keep), self.Z.take(keep)
        self.loss, self.G, self.gained = self.loss[keep], self.G[keep], self.gained[keep]
        self.steps = [step.take(keep) for step in self.steps]

    def direction(self) -> tuple[Tensor, Tensor]:
        """Return where to go, `(M, K, D+1)`, and the slope `(M,)` of the objective there."""
        along = _search_direction(self.G, self.steps, self.factors)
        return along, _dot(self.G, along)

    def refine(self, chosen: Tensor) -> None:
        """Compute logits, objectives and gradients of the chosen label sets from products in full precision."""
        part = self.problems.take(chosen)
        part.low = False
        Z = part.logits(self.Z.weights[chosen])
        self.loss[chosen], self.G[chosen] = part.gradient(Z)
        if self.Z.held is not None and Z.held is not None:
            self.Z.held[chosen] = Z.held


def _minimise(problems: Problems, stop: Stop, start: Tensor | None) -> list[Solution]:
    source = torch.Generator("cpu").manual_seed(child_seed(0, "softmax"))
    Z = problems.logits(warm_start(problems, source, start))
    loss, G = problems.gradient(Z)
    factors = curvature(problems, Z.weights, source)
    now = _State(problems, list(range(len(problems))), Z, loss, G, factors, [], torch.full_like(loss, torch.inf))
    done: dict[int, Solution] = {}
    for iteration in range(stop.max_iterations + 1):
        now.factors = renewed(now.factors, iteration, now.problems, now.Z.weights, source)
        last = iteration == stop.max_iterations
        finished, direction, fall = _judged(now, stop, last=last)
        keep = _parted(now, done, finished | last, iteration, converged=finished)
        if not now.place:
            break
        stuck = _advance(now, direction[keep], fall[keep]) == 0
        if now.problems.low and bool(stuck.any()):
            _leave_low(now)
        elif bool(stuck.any()) and now.restarts < _MOST_RESTARTS:  # remembered steps or the factors may be at fault
            now.restarts += 1
            now.steps, now.factors = [], firmer(now.factors, now.problems, now.Z.weights, source)
        else:
            _parted(now, done, stuck, iteration, converged=stuck)
        if not now.place:
            break
    return [done[m] for m in sorted(done)]


def _parted(now: _State, done: dict[int, Solution], leaving: Tensor, iteration: int, *, converged: Tensor) -> Tensor:
    """Note the solutions of the label sets that leave, and return the numbers of those that stay."""
    keep = torch.nonzero(~leaving).flatten()
    for m in torch.nonzero(leaving).flatten().tolist():
        done[now.place[m]] = _solution(now.problems, now.Z.weights, now.loss, m, iteration, bool(converged[m]))
    if len(keep) < len(now.place):
        now.take(keep)
    return keep


def _judged(now: _State, stop: Stop, *, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return which label sets are done, by gradients in full precision, and direction and slope of all."""
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
    now.problems.low, now.steps = False, []  # differences of gradients in bfloat16 mislead at the end
    now.refine(torch.arange(len(now.place)))


def _is_done(now: _State, fall: Tensor, tolerance: float) -> Tensor:
    floor = _LOSS_FLOOR * math.log(now.problems.k)
    enough = now.factors.certainty * tolerance * now.loss.clamp_min(floor)
    still = now.G.abs().amax((1, 2)) <= 10 * tolerance
    # What the model still promises, and what the last step gave: neither alone can be trusted far from the optimum.
    return still & (-0.5 * fall <= enough) & ((now.gained <= 0.5 * enough) | (-0.5 * fall <= 1e-3 * enough))


def _advance(now: _State, direction: Tensor, fall: Tensor) -> Tensor:
    """Take the unit step where it serves, else one by a line search, and return the steps `(M,)`, 0 where none lowers
    the objective.
    """
    Z, ZD, loss, G = now.problems.stepped(now.Z, direction)
    slope = _dot(G, direction)
    step = torch.ones_like(loss)
    again = torch.nonzero(~_accepts_step(loss, now.loss, slope, fall)).flatten()
    # Held logits are searched one label set at a time, to copy few of them; else one reading serves all.
    for chosen in torch.split(again, 1 if Z.held is not None else max(1, len(again)))[: len(again)]:
        part, there, change = now.problems.take(chosen), Z.take(chosen), ZD.take(chosen)
        step[chosen] = _line_search(part, there, change, now.loss[chosen], fall[chosen], (loss[chosen], slope[chosen]))
        Z.put(chosen, there.moved(change, step[chosen] - 1))
        loss[chosen], G[chosen] = part.gradient(there)
    now.gained = now.loss - loss
    now.steps = [*now.steps, _Remembered.of(Z.weights - now.Z.weights, G - now.G)][-_MEMORY:]
    now.Z, now.loss, now.G = Z, loss, G
    return step


def _solution(problems: Problems, W: Tensor, loss: Tensor, m: int, iterations: int, converged: bool) -> Solution:
    own = W[m, : problems.classes[m]].T.double().cpu()
    centred = own - own.mean(1, keepdim=True)
    saved = own[:-1].square().sum() - centred[:-1].square().sum()
    objective = float(loss[m] - 0.5 * problems.penalties[m] * saved)
    return Solution(centred[:-1], centred[-1], objective, iterations, converged)


@contextmanager
def _one_thread(is_small: bool) -> Iterator[None]:
    """Return a context manager within which torch computes on one thread if the problem is small."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if is_small else before)
        yield
    finally:
        torch.set_num_threads(before)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of a and b for each label set, `(M,)` float64."""
    return (a * b).sum((1, 2), dtype=torch.float64)


class _Remembered(NamedTuple):
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
    def of(cls, step: Tensor, change: Tensor) -> _Remembered:
        """Return the step and the change of the gradient with their curvature."""
        curvature = _dot(step, change)
        return cls(step, change, curvature, torch.where(curvature > 0, 1 / curvature, 0.0))

    def take(self, keep: Tensor) -> _Remembered:
        """Return the steps of the chosen label sets."""
        return _Remembered(*(part[keep] for part in self))


def _search_direction(G: Tensor, steps: list[_Remembered], factors: Curvature) -> Tensor:
    """Return the L-BFGS search direction `(M, K, D+1)` of each label set, by the two-loop recursion with the
    preconditioner in its middle.
    """
    q = G.clone()
    shares = []
    for step, change, _, rho in reversed(steps):
        a = _dot(step, q) * rho
        q -= a.to(q.dtype).view(-1, 1, 1) * change
        shares.append(a)
    r = _scaled(q, steps, factors)
    for (step, change, _, rho), a in zip(steps, reversed(shares), strict=True):
        b = _dot(change, r) * rho
        r += (a - b).to(r.dtype).view(-1, 1, 1) * step
    ascent = _dot(G, r) <= 0
    if bool(ascent.any()):
        r = torch.where(ascent.view(-1, 1, 1), factors.solve(G)[0], r)
    return r.neg_()


def _scaled(q: Tensor, steps: list[_Remembered], factors: Curvature) -> Tensor:
    """Apply the preconditioner to `q`, by the scale it lacks along the last step: it knows no coupling of classes."""
    if not steps:
        return factors.solve(q)[0]
    _, change, curvature, _ = steps[-1]
    r, solved = factors.solve(q, change)
    bent = _dot(change, solved)
    gamma = torch.where((curvature > 0) & (bent > 0), curvature / bent, 1.0).clamp(0.01, 10.0)
    return r.mul_(gamma.to(r.dtype).view(-1, 1, 1))


def _accepts_step(value: Tensor, before: Tensor, slope: Tensor, fall: Tensor) -> Tensor:
    """Return, for each label set `(M,)`, whether a step does not raise the objective and leaves at most 90 % of the
    slope (a strong Wolfe condition).
    """
    return (value <= before) & (slope.abs() <= _SLOPE_LEFT * fall.abs())


def _line_search(
    problems: Problems, Z: Logits, ZD: Logits, before: Tensor, fall: Tensor, unit: tuple[Tensor, Tensor]
) -> Tensor:
    """Search along the direction and return step sizes `(M,)`: the one with the lowest objective tried, 0 if none
    lowers it. The search ends when all label sets meet `_accepts_step`, after 12 trials at most.

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
        enough = _accepts_step(value, before, slope, fall)
        if bool((enough | (fall >= 0)).all()):
            break
        low, high = torch.where(slope < 0, step, low), torch.where(slope >= 0, step, high)
        newton = step - slope / curvature.clamp_min(1e-300)
        middle = torch.where(high.isinf(), 4 * step, 0.5 * (low + high))
        inside = (newton > low) & (newton < high.clamp_max(10 * step)) & newton.isfinite()
        step = torch.where(enough, step, torch.where(inside, newton, middle))
    return best
