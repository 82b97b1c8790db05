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
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes._rows import Rows
from probing.probes._softmax_curvature import Costs, Curvature, curvature, firmer, label_sets_at_once, renewed
from probing.probes._softmax_parts import Logits, Problems
from probing.probes._softmax_start import (
    Remembered,
    accepts_step,
    dot,
    line_search,
    one_thread,
    search_direction,
    warm_start,
)
from probing.seeds import child_seed

_MEMORY = 8
_SMALL_PASS = 2**26  # multiplications that two threads do no sooner than one, as each waits for the other
_LOSS_FLOOR = 0.05
_LOW_TOLERANCE = 5e-5
_MOST_REFUSALS = 3
_MOST_RESTARTS = 2


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
    with one_thread(Costs.of(rows, len(codes), max(classes)).a_pass < _SMALL_PASS):
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
    steps: list[Remembered]
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
        along = search_direction(self.G, self.steps, self.factors)
        return along, dot(self.G, along)

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
    slope = dot(G, direction)
    step = torch.ones_like(loss)
    again = torch.nonzero(~accepts_step(loss, now.loss, slope, fall)).flatten()
    # Held logits are searched one label set at a time, to copy few of them; else one reading serves all.
    for chosen in torch.split(again, 1 if Z.held is not None else max(1, len(again)))[: len(again)]:
        part, there, change = now.problems.take(chosen), Z.take(chosen), ZD.take(chosen)
        step[chosen] = line_search(part, there, change, now.loss[chosen], fall[chosen], (loss[chosen], slope[chosen]))
        Z.put(chosen, there.moved(change, step[chosen] - 1))
        loss[chosen], G[chosen] = part.gradient(there)
    now.gained = now.loss - loss
    now.steps = [*now.steps, Remembered.of(Z.weights - now.Z.weights, G - now.G)][-_MEMORY:]
    now.Z, now.loss, now.G = Z, loss, G
    return step


def _solution(problems: Problems, W: Tensor, loss: Tensor, m: int, iterations: int, converged: bool) -> Solution:
    own = W[m, : problems.classes[m]].T.double().cpu()
    centred = own - own.mean(1, keepdim=True)
    saved = own[:-1].square().sum() - centred[:-1].square().sum()
    objective = float(loss[m] - 0.5 * problems.penalties[m] * saved)
    return Solution(centred[:-1], centred[-1], objective, iterations, converged)


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
