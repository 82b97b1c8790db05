"""The size S of an effect, for all tiers: how large a mean change of the behaviour is, along its natural contrast and
off it.

A cell w is a stratum of the other properties and, for classes, a pair a < b. π_w is its weight, m_w the mean change of
the behaviour under an edit from a to b, t_w the natural contrast (the mean difference in behaviour between inputs with
b and with a), y the clean behaviour of the rows and ȳ its mean:

    along = Σ_w π_w ⟨m_w, t_w⟩ / T        T = sqrt(Σ_w π_w |t_w|²)        off² = Σ_w π_w |m_w|² − along²
    s_c = sqrt(Σ_w π_w mean_w ⟨y − ȳ, t_w⟩²) / T        s_Y = root of the summed variances of y
    S = sqrt((along / s_c)² + (off / s_Y)²)

If T is below 0.001 s_Y, or below three times its value by chance (`SignedMeans.error`), there is no contrast, and the
whole effect counts as off it. `probing use` estimates the same quantities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.use.contrasts import sums_by

NO_CONTRAST = 0.001  # T in units of s_Y
ERRORS = 3.0  # T in units of its standard error

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SignedMeans:
    """Computes the mean change of each cell, signed so that it is from a to b; for real values, the slope in each
    stratum times a typical step.

    The weight of a stratum is its share of the rows; within it, that of a pair of classes is the product of their
    shares, with both directions of a pair equal. The step for real values is the root mean square of the step to the
    value half the ranks away in the stratum, as in the edits of `probing use`; where all rows of a stratum start from
    one value, that of the edits themselves.

    Attributes:
        codes: `(n,)` code of each row's cell.
        shares: `(W,)` shares π of the strata, which sum to 1.
        factors: `(n,)` weight of each row's change within its cell's mean, signed.
        steps: `(n,)` expected change of each row in units of its cell's mean: 1, or -1 in the direction from b to a.
        rows: `(n,)` weight of each row, which sum to 1.
    """

    codes: Ints
    shares: Floats
    factors: Floats
    steps: Floats
    rows: Floats

    @classmethod
    def of(cls, start: NDArray[Any], goal: NDArray[Any], strata: Ints, *, n_classes: int) -> SignedMeans:
        """Return the signed means for n edited rows.

        Args:
            start, goal: `(n,)` value of the property before and after the edit: class codes, or real values.
            strata: `(n,)` codes of the combined values of the other properties.
            n_classes: number of classes; 0 for real values.
        """
        if n_classes:
            return cls._of_classes(start, goal, strata, n_classes)
        return cls._of_real_values(start, goal, strata)

    @classmethod
    def _of_classes(cls, start: Ints, goal: Ints, strata: Ints, k: int) -> SignedMeans:
        low, high = np.minimum(start, goal), np.maximum(start, goal)
        keys, codes = np.unique((strata * k + low) * k + high, return_inverse=True)
        shares = _pair_shares(keys, np.bincount(strata * k + start), np.bincount(strata), k)
        directed = 2 * codes + (start > goal)
        counts = np.bincount(directed, minlength=2 * len(keys))
        directions = (counts.reshape(-1, 2) > 0).sum(1)
        within = 1 / (directions[codes] * counts[directed])
        sign = np.where(start < goal, 1.0, -1.0)
        return cls(codes.astype(np.int64), shares, sign * within, sign, shares[codes] * within)

    @classmethod
    def _of_real_values(cls, start: Floats, goal: Floats, strata: Ints) -> SignedMeans:
        codes = np.unique(strata, return_inverse=True)[1].astype(np.int64)
        counts, step = np.bincount(codes), goal - start
        usual = np.zeros(len(start))
        for w in range(len(counts)):
            inside = np.flatnonzero(codes == w)
            order = inside[np.argsort(start[inside], kind="stable")]
            usual[order] = start[np.roll(order, len(order) // 2)] - start[order]
            if not usual[inside].any():
                usual[inside] = step[inside]
        mean_square, shares = np.bincount(codes, usual**2) / counts, counts / len(codes)
        steps = step / np.sqrt(mean_square)[codes]
        factors = steps / np.bincount(codes, steps**2)[codes]
        return cls(codes, shares, factors, steps, (shares / counts)[codes] * usual**2 / mean_square[codes])

    def __call__(self, changes: Floats) -> Floats:
        """Return the means `(W, V)` of changes `(n, V)`."""
        return sums_by(self.codes, self.factors[:, None] * changes, len(self.shares))

    def size(self, means: Floats) -> float:
        """Return the size of means `(W, V)`: the root of the mean of their squared lengths, weighted by `shares`."""
        return math.sqrt(float(self.shares @ (means**2).sum(1)))

    def error(self, changes: Floats, means: Floats) -> float:
        """Return the value of `size` that chance alone would give: the root of the weighted sampling variance of the
        means.
        """
        rest = changes - self.steps[:, None] * means[self.codes]
        return math.sqrt(float((self.shares[self.codes] * self.factors**2) @ (rest**2).sum(1)))


def _pair_shares(keys: Ints, of_class: Ints, of_stratum: Ints, k: int) -> Floats:
    """Return the weights `(W,)` of cells (stratum, a, b), from the rows by stratum and class and by stratum."""
    stratum, low, high = keys // k**2, keys // k % k, keys % k
    counts = np.zeros(len(of_stratum) * k)
    counts[: len(of_class)] = of_class
    product = counts[stratum * k + low] * counts[stratum * k + high]
    total = np.bincount(stratum, product)
    alike = 1 / np.bincount(stratum)[stratum]  # a stratum whose rows all start from one class
    shares = np.where(total[stratum] > 0, product / np.where(total > 0, total, 1.0)[stratum], alike)
    return np.asarray(shares * of_stratum[stratum] / of_stratum.sum())


@dataclass(frozen=True)
class Size:
    """Holds the size of an effect, in parts along and off the natural contrast.

    Attributes:
        along: signed part along the natural contrast, in SDs of the clean behaviour along it; 0 if there is no
            contrast.
        off: part off the contrast or that differs between cells, in SDs of the whole clean behaviour.
        of_total: the whole effect in SDs of the whole clean behaviour.
    """

    along: float
    off: float
    of_total: float

    @property
    def s(self) -> float:
        """Size of the whole effect, S."""
        return math.hypot(self.along, self.off)


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Holds the natural contrast of one property, and the units in which effects on the behaviour are measured.

    Attributes:
        means: signed means of the edited rows.
        natural: `(W, V)` natural contrast t.
        s_y: SD of the whole clean behaviour, the root of its summed variances.
        s_c: SD of the clean behaviour along t; 0 if there is no contrast.
    """

    means: SignedMeans
    natural: Floats
    s_y: float
    s_c: float

    @classmethod
    def of(cls, means: SignedMeans, y: Floats, natural_changes: Floats) -> Yardstick:
        """Return the yardstick for rows with clean behaviour y `(n, V)`, which changes by `natural_changes` when the
        property changes.
        """
        natural, s_y = means(natural_changes), math.sqrt(float(y.var(0).sum()))
        total = means.size(natural)
        if total < max(NO_CONTRAST * s_y, ERRORS * means.error(natural_changes, natural)):
            return cls(means, natural, s_y, 0.0)
        along = np.einsum("nv,nv->n", y - y.mean(0), natural[means.codes]) / total
        return cls(means, natural, s_y, math.sqrt(float(means.rows @ along**2)))

    @property
    def total(self) -> float:
        """Size T of the natural contrast, in SDs of the whole clean behaviour (s_Y)."""
        return self.means.size(self.natural) / self.s_y

    def __call__(self, changes: Floats) -> Size:
        """Return the size of changes `(n, V)` of the rows."""
        moved = self.means(changes)
        whole = self.means.size(moved)
        if not self.s_c:
            return Size(0.0, whole / self.s_y, whole / self.s_y)
        total = self.means.size(self.natural)
        along = self._product(moved) / total
        off = self.means.size(moved - along / total * self.natural)
        return Size(along / self.s_c, off / self.s_y, whole / self.s_y)

    def mediated(self, changes: Floats) -> float:
        """Return the mediated fraction of changes `(n, V)`: Σ π ⟨m, t⟩ / T²."""
        return self._product(self.means(changes)) / self.means.size(self.natural) ** 2

    def _product(self, moved: Floats) -> float:
        return float(self.means.shares @ (moved * self.natural).sum(1))
