"""Preconditioners of the softmax solver: dense factors, one per class, or a shared low-rank approximation.

References:
    Nocedal & Wright 2006, *Numerical Optimization*, §7.2; Frangella, Tropp & Udell 2023, *SIAM J. Matrix Anal. Appl.*
    44(2), 718-752 (randomised Nyström preconditioning); Halko, Martinsson & Tropp 2011, *SIAM Rev.* 53(2), 217-288.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes._rows import Operand, Rows
from probing.probes._softmax_parts import Problems

_SHARED_ROWS = 8192
_SHRINK = 0.15
_WIDE, _ROWS_A_COLUMN = 128, 16
_SMALL_TRIANGLE = 64
_LEVEL_ROWS = 8192
_CHANGED = 1.5  # by what factor p(1-p) must have changed for a new factor to be worth its time
_RANK = 128
_SKETCHED_ROWS = 2048
_FEWEST_COLUMNS = 16
_OWN_MADE, _SHARED_MADE = 1.5, 3.5  # times that factors are made: shared ones at every renewal
_DENSE_STEPS, _HOPED_STEPS, _FEARED_STEPS, _FLAT_STEPS, _PATIENCE, _LAST_PATIENCE = 25, 40, 120, 600, 20, 100
_STEEP = 0.5  # share of the variance that the leading directions need to hold, or they tell little of the curvature
_VECTORS = 24  # of a label set: two for each step remembered, weights, gradients and directions
_SHARED_CERTAINTY = 0.02  # a preconditioner that classes share promises less than there is left to gain


@dataclass
class Dense:
    """Holds the inverses of the Cholesky factors of the Hessian's class blocks. The preconditioner L⁻ᵀL⁻¹ is positive
    definite, so it always gives a descent direction.

    Attributes:
        inverses: `(M, F, D+1, D+1)`, lower triangles; F is K, or 1 if all classes share a factor.
        levels: `(M, F)` mean p(1-p) over evenly spaced rows, as it was when each factor was computed.
        common: `(D+1, D+1)` lower triangle of the Gram matrix of evenly spaced rows, divided by their number.
    """

    inverses: Tensor
    levels: Tensor
    common: Tensor
    iterations_between = 12

    @classmethod
    def of(cls, problems: Problems, W: Tensor, source: torch.Generator) -> Dense:
        """Compute the factors at weights W and return them: one factor per class if that saves more time than it costs,
        else one for all classes.
        """
        many, width, k = len(problems), problems.width, problems.k
        factors = k if Costs.of(problems.rows, many, k).has_own else 1
        made = cls(
            W.new_zeros(many, factors, width, width),
            W.new_full((many, factors), -1.0),
            _common(problems.rows.pilot, width, W.dtype),
        )
        made.refresh(problems, W, source)
        return made

    @property
    def certainty(self) -> float:
        """Share of the tolerance at which the solver may stop by these factors' prediction of the remaining decrease:
        below 1 if classes share a factor, since the prediction is then too low.
        """
        return _SHARED_CERTAINTY if self.inverses.shape[1] == 1 else 1.0

    def refresh(self, problems: Problems, W: Tensor, source: torch.Generator) -> None:
        """Recompute the factors of XᵀDiag(p(1-p))X/N + λI, estimated from rows sampled in proportion to p(1-p), or from
        all rows if there are few.

        An estimate from sampled rows is shrunk towards the scaled Gram matrix `common`, since 1,024 rows determine
        hundreds of directions poorly. A factor per class is kept if its mean p(1-p) has changed by a factor of at most
        1.5; a shared factor is always recomputed.
        """
        shared = self.inverses.shape[1] < problems.k
        rows = problems.rows.pilot
        few_rows = _spread(rows, _LEVEL_ROWS)
        for m in range(len(problems)):
            one = problems.take(torch.tensor([m]))
            level = _importance(one, W[m : m + 1], few_rows, shared=shared).mean(1)
            changed = torch.maximum(level, self.levels[m]) > _CHANGED * torch.minimum(level, self.levels[m])
            if not (shared or bool(changed.any())):
                continue
            importance = _importance(one, W[m : m + 1], rows, shared=shared)
            for f in torch.nonzero(changed | shared).flatten().tolist():
                block = _block(rows, importance[f], self.common, source)
                block.diagonal().add_(problems.penalties[m] + 1e-5 * float(block.diagonal().mean()) + 1e-9)
                invert(torch.linalg.cholesky(block), self.inverses[m, f])
                self.levels[m, f] = level[f]

    def take(self, keep: Tensor) -> Dense:
        """Return the factors of the chosen label sets."""
        return Dense(self.inverses[keep], self.levels[keep], self.common)

    def solve(self, *parts: Tensor) -> list[Tensor]:
        """Apply the preconditioner to each gradient `(M, K, D+1)` in `parts` and return the results; the factors are
        read once for all of them.
        """
        many, k, width = parts[0].shape
        shared = self.inverses.shape[1] == 1
        right = torch.cat(parts, 1) if shared else torch.stack(parts, 2).view(many * k, len(parts), width)
        inverses = self.inverses.view(-1, width, width)
        solved = right @ inverses.mT @ inverses
        if shared:
            return [part.contiguous() for part in torch.split(solved, k, 1)]
        return [part.reshape(many, k, width) for part in solved.unbind(1)]


@dataclass
class LowRank:
    """Holds the leading directions of XᵀX/N, computed once for all label sets, and the mean variance of the other
    directions that the rows span.

    The block of class k of label set m is approximated by v·(U diag(e) Uᵀ + t (I - UUᵀ)) + λI. Here v is the mean
    p(1-p) of the class times K/(K-1), since blocks of equal classes act on centred weights. Applying the inverse costs
    2·D·R per gradient.

    Attributes:
        basis: U `(D, R)`, orthonormal.
        top: e `(R,)`, variances along U.
        tail: t, mean variance of the other directions.
        levels: v `(M, K)`.
        penalties: λ `(M,)`.
        share: of the variance, what lies along U.
    """

    basis: Tensor
    top: Tensor
    tail: float
    levels: Tensor
    penalties: Tensor
    share: float
    iterations_between = 4
    certainty = _SHARED_CERTAINTY

    @classmethod
    def of(cls, problems: Problems, W: Tensor, source: torch.Generator) -> LowRank:
        """Compute the directions by one step of randomised subspace iteration on about max(2048, D/2) evenly spaced
        rows at most, and return the preconditioner at weights W.
        """
        rows = _spread(problems.rows.pilot, max(_SKETCHED_ROWS, problems.width // 2))
        rank = min(_RANK, *rows.shape)
        draws = torch.randn(rows.shape[1], rank, generator=source, dtype=torch.float64, device="cpu").to(rows)
        basis = torch.linalg.qr((rows.T @ (rows @ draws)).to(W.dtype))[0]
        inside = (rows @ basis.to(rows.dtype)).to(W.dtype)
        top, turn = torch.linalg.eigh(inside.T @ inside / len(rows))
        few = _spread(rows, 256)
        whole = float(torch.linalg.vector_norm(few, dtype=W.dtype)) ** 2 / len(few)
        tail = max(whole - float(top.sum()), 0.0) / max(1, min(rows.shape) - rank)
        penalties = torch.tensor(problems.penalties, dtype=W.dtype)
        share = float(top.sum()) / max(whole, 1e-12)
        made = cls(basis @ turn, top.clamp_min(tail), tail, W.new_zeros(W.shape[:2]), penalties, share)
        made.refresh(problems, W, source)
        return made

    def refresh(self, problems: Problems, W: Tensor, source: torch.Generator) -> None:
        """Recompute `levels` at weights W, from at most 1,024 evenly spaced rows."""
        p = torch.softmax(problems.product(W, Operand(_spread(problems.rows.pilot, 1024))), 1)
        equal = torch.tensor([k / (k - 1) for k in problems.classes], dtype=W.dtype)
        self.levels = (p * (1 - p)).mean(2) * equal[:, None]

    def take(self, keep: Tensor) -> LowRank:
        """Return the preconditioner of the chosen label sets."""
        return LowRank(self.basis, self.top, self.tail, self.levels[keep], self.penalties[keep], self.share)

    def solve(self, *parts: Tensor) -> list[Tensor]:
        """Apply the preconditioner to each gradient `(M, K, D+1)` in `parts` and return the results."""
        level, penalty = self.levels.view(-1, 1), self.penalties.repeat_interleave(self.levels.shape[1]).unsqueeze(1)
        rest = 1 / (level * self.tail + penalty).clamp_min(1e-12)
        inside = 1 / (level * self.top + penalty).clamp_min(1e-12) - rest
        solved = []
        for part in parts:
            flat = part.flatten(0, 1)
            states = flat[:, :-1]
            found = torch.empty_like(flat)
            torch.addmm(states * rest, (states @ self.basis).mul_(inside), self.basis.T, out=found[:, :-1])
            torch.div(flat[:, -1:], level.clamp_min(1e-9), out=found[:, -1:])
            solved.append(found.view_as(part))
        return solved


Curvature = Dense | LowRank


@dataclass(frozen=True)
class Costs:
    """Counts the multiplications that each preconditioner needs, for M label sets of K classes on N rows of D features.

    A pass over the rows costs 2·N·D·MK, or as much as for 16 columns if MK is less, since reading the rows then takes
    the time. Computing dense factors costs F·D²·(S + D), for S sampled rows and F = MK factors (M if classes share
    them); applying them costs 2·MK·D² per step. The numbers of steps were measured on states of encoders and on
    synthetic states with a flat tail (`scripts/bench_probes.py --shapes`): about 25 with dense factors; with the
    low-rank one 10 to 50, or 80 to 200 if variances decrease slowly and classes are many, which shows only during the
    run.
    """

    n: int
    width: int
    columns: int
    blocks: int
    has_own: bool

    @classmethod
    def of(cls, rows: Rows, many: int, k: int) -> Costs:
        """Return the cost model of these rows and label sets; `has_own` (a factor per class) is set only if there are
        enough rows to repay it, and enough memory.
        """
        few = rows.width >= _WIDE and rows.n < _ROWS_A_COLUMN * rows.width
        own = not few and many * k * (rows.width + 1) ** 2 <= rows.budget
        return cls(rows.n, rows.width, many * k, many * (k if own else 1), own)

    @property
    def a_pass(self) -> float:
        return 2.0 * self.n * self.width * max(_FEWEST_COLUMNS, self.columns)

    @property
    def dense(self) -> float:
        made = self.blocks * self.width**2 * (min(self.n, max(1024, 2 * self.width) * 2) + self.width)
        return (_OWN_MADE if self.has_own else _SHARED_MADE) * made + _DENSE_STEPS * (
            self.a_pass + 2 * self.columns * self.width**2
        )

    @property
    def starts_dense(self) -> bool:
        """Whether dense factors cost less than the 40 steps that the low-rank preconditioner needs at best; the solver
        then starts with them.
        """
        return self.dense < _HOPED_STEPS * self.a_pass

    @property
    def becomes_dense(self) -> bool:
        """Whether dense factors cost less than the 120 steps that a slow low-rank preconditioner needs; the solver then
        switches to them.
        """
        return self.dense < _FEARED_STEPS * self.a_pass


def label_sets_at_once(rows: Rows, many: int, k: int) -> int:
    """Return how many of M label sets of K classes can be solved at once, with their logits and curvature in the rows'
    budget; at least 1.
    """
    width = rows.width + 1
    square = min(width * width, rows.budget // k) if Costs.of(rows, 1, k).becomes_dense else 0
    vectors, logits = _VECTORS * width + square, 2 * rows.n
    each = k * (vectors + logits if k * (vectors + logits) <= rows.budget else vectors)  # else multiplied anew
    return min(many, max(1, rows.budget // each))


def curvature(problems: Problems, W: Tensor, source: torch.Generator) -> Curvature:
    """Return the preconditioner to start with, computed at weights W `(M, K, D+1)`, as `Costs` decides."""
    costs = Costs.of(problems.rows, len(problems), problems.k)
    if costs.starts_dense or costs.width <= _RANK:  # of so few columns no low rank is to be had
        return Dense.of(problems, W, source)
    found = LowRank.of(problems, W, source)
    # Where variances hardly decrease, hundreds of steps would be needed, if they led to the optimum at all.
    is_slow = found.share < _STEEP and costs.dense < _FLAT_STEPS * costs.a_pass
    return Dense.of(problems, W, source) if is_slow else found


def renewed(now: Curvature, iteration: int, problems: Problems, W: Tensor, source: torch.Generator) -> Curvature:
    """Return the preconditioner for this iteration: the current one, refreshed every few iterations, or dense factors
    in its place if the low-rank one is slow.
    """
    if iteration == 0 or iteration % now.iterations_between:
        return now
    costs = Costs.of(problems.rows, len(problems), problems.k)
    is_due = (iteration == _PATIENCE and costs.becomes_dense) or iteration == _LAST_PATIENCE
    if isinstance(now, LowRank) and is_due and costs.blocks * problems.width**2 <= problems.rows.budget:
        return Dense.of(problems, W, source)
    now.refresh(problems, W, source)
    return now


def firmer(now: Curvature, problems: Problems, W: Tensor, source: torch.Generator) -> Curvature:
    """Return new factors for label sets that found no step downwards: dense ones, if there is memory for them."""
    costs = Costs.of(problems.rows, len(problems), problems.k)
    if isinstance(now, LowRank) and costs.blocks * problems.width**2 <= problems.rows.budget:
        return Dense.of(problems, W, source)
    now.refresh(problems, W, source)
    return now


def _spread(rows: Tensor, count: int) -> Tensor:
    """Return rows at even distances, `count` at most."""
    return rows[:: -(-len(rows) // count)]


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
    """Write the inverse of a lower triangular matrix `(D, D)` to `to`, by recursion on halves, which uses matrix
    products. Large matrices leave most of `to` above the diagonal unchanged.
    """
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
    """Return the lower triangle of `XᵀX` for X `(n, D)`, computed in three strips, which saves a third of the
    multiplications.
    """
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
    """Return the lower triangle of `Σ wₙ xₙ xₙᵀ / N`: exact if there are at most `2 · count` rows, else estimated from
    `count` rows, sampled systematically in proportion to the weights.
    """
    n = len(rows)
    if n <= 2 * count:
        all_rows = with_ones(rows.to(weights.dtype))
        return gram(all_rows * (weights / n).sqrt().unsqueeze(1))
    cumulated = weights.cumsum(0, dtype=torch.float64)
    total = cumulated[-1]
    first = torch.rand(1, generator=source, dtype=torch.float64, device="cpu").item()
    points = (first + torch.arange(count, dtype=torch.float64)) * (total / count)
    picked = with_ones(rows.index_select(0, torch.searchsorted(cumulated, points).clamp_max_(n - 1)).to(weights.dtype))
    return gram(picked).mul_(float(total) / (n * count))
