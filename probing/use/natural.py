"""Natural: the difference in behaviour that comes with a property by itself, along which an edit is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from probing.use.cells import RowWeights
from probing.use.contrasts import Contrast, Sides
from probing.use.experiment import Experiment
from probing.use.twins import twins_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Natural:
    """The natural difference in behaviour along which edited rows of F3 are measured.

    Attributes:
        y, mean: `(n, V)` clean behaviour of all rows of the experiment, and its mean `(V,)`.
        f2, f3: rows of the folds (f3: those edited).
        sides: of the rows f3.
        fitted, measured: the contrast of all rows of F2, and of F3, edited or not.
        sign: 1, or -1: τ is measured along the contrast turned round, where that makes rotations agree.
        exchanged: states were exchanged, which is done as often as classes meet; else pairs of classes weigh as stated.
    """

    experiment: Experiment
    y: Floats
    mean: Floats
    f2: Ints
    f3: Ints
    sides: Sides
    fitted: Contrast
    measured: Contrast
    sign: float = 1.0
    exchanged: bool = False

    @cached_property
    def weights(self) -> RowWeights:
        """Weights of the rows f3."""
        e = self.experiment
        pair_shares = None if self.exchanged or not e.n_classes else e.pair_shares
        return RowWeights(self.sides, e.shares, e.n_classes, pair_shares)

    @cached_property
    def c(self) -> Floats:
        """Contrast along which each row is measured, `(n, V)`."""
        return self.sign * self.fitted.difference(self.sides)

    @cached_property
    def size(self) -> float:
        """Length of the contrast, C; never zero."""
        found = float(np.sqrt(self.weights.weights @ (self.c**2).sum(1)))
        return found or float(np.finfo(np.float64).tiny) ** 0.25

    @property
    def aim(self) -> Floats:
        """Derivatives of τ in the behaviour of a row of weight 1, `(n, V)`."""
        return self.c / self.size

    @property
    def coefficients(self) -> Floats:
        """Derivatives of τ in the behaviour, `(n, V)`."""
        return self.weights.weights[:, None] * self.aim

    @cached_property
    def spread(self) -> float:
        """SD of clean behaviour along the contrast, s_c."""
        along = np.einsum("nv,nv->n", self.y[self.f3] - self.mean, self.c)
        return float(np.sqrt(self.weights.weights @ along**2)) / self.size

    def along(self, changes: Floats) -> Floats:
        """Return the changes along the contrast, `(n,)`: ⟨Δ, c⟩ / C."""
        return np.asarray(np.einsum("nv,nv->n", changes, self.c) / self.size)

    def through_contrast(self, changes: Floats, value: float) -> Floats:
        """Return influence values `(F2,)` of the mean of `along`, through the fitted contrast."""
        p = self.weights.weights[:, None]
        sensitivity = p * (changes / self.size - value * self.c / self.size**2)
        return self.sign * self.fitted.influence(self.sides, sensitivity)

    @cached_property
    def total(self) -> tuple[float, Floats]:
        """Natural effect T, and its influence values `(n,)` of all rows; where each has its twin, of their own
        differences.
        """
        e = self.experiment
        twins = twins_of(e.twins, e.z, self.f3, self.sides.goal)
        change = self.measured.difference(self.sides) if twins is None else self.y[twins] - self.y[self.f3]
        value, influence = float(self.weights.weights @ self.along(change)), np.zeros(len(self.y))
        if twins is None:
            influence[e.fold(e.folds[self.f3[0]])] += self.measured.influence(self.sides, self.coefficients)
        else:
            influence[self.f3] += self.weights.centred(self.along(change))
        influence[self.f2] += self.through_contrast(change, value)
        return self.sign * value, self.sign * influence
