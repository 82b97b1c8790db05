"""Shifts each state by the difference between the means of two classes (class-mean swap)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.intervention import Edit, Intervention, Targets
from probing.errors import BadParameter
from probing.use.interventions._edits import Floats, Goals, columns_of


@dataclass(frozen=True, eq=False)
class ClassMeanEdit(Edit):
    """Shifts a state h to h + a (m[goal, w] − m[z, w]), where z and goal are the row's value of the property before and
    after the edit and w is its stratum (the rows that agree with it in all covariates); for real values, shifts h to h
    + a (goal − z) m[0, w].

    Attributes:
        means: m, the mean states of K classes in W strata, `(K, W, D)`; for real values slopes, `(1, W, D)`. W is 1 if
            all strata share one shift.
        dose: the factor a.
        n_classes: number of classes K; 0 for real values.
    """

    means: Floats
    dose: float
    n_classes: int

    def apply(self, states: NDArray[np.float32], targets: Targets, goals: Goals) -> NDArray[np.float32]:
        w = targets.strata if self.means.shape[1] > 1 else np.zeros_like(targets.strata)
        if self.n_classes:
            shift = self.means[goals.astype(np.int64), w] - self.means[targets.z.astype(np.int64), w]
        else:
            shift = (goals - targets.z)[:, None] * self.means[0, w]
        return np.asarray(states + self.dose * shift, dtype=states.dtype)

    @property
    def rank(self) -> int:
        return int(self.means.shape[1]) * max(1, self.n_classes - 1)


class ClassMean(Intervention):
    """Swaps class means: replaces a state h by h + a (mean(h | goal, w) − mean(h | z, w)), where z and goal are the
    row's class before and after the edit, w its stratum (the rows that agree with it in all covariates) and a the dose.

    If a class does not occur in a stratum, its mean there is estimated as the stratum's mean plus the class's mean
    minus the mean of all rows. For real values, the shift is the slope of h on z in the stratum, times the change of z.

    Args:
        dose: the dose a, above 0; 1 moves the mean of one class to that of the other.
        shared: whether all strata share one shift, the mean of the shifts of the strata, weighted by their shares of
            rows.

    References:
        Marks and Tegmark 2023, The Geometry of Truth, §5.
    """

    decides: ClassVar[bool] = True

    def __init__(self, *, dose: float = 1.0, shared: bool = False) -> None:
        """Store the options; the class describes them.

        Raises:
            BadParameter: the dose is not positive.
        """
        if not dose > 0:
            raise BadParameter("a dose is positive", needed="above 0", found=str(dose))
        self.dose = dose
        self.shared = shared

    def fit(self, states: NDArray[np.float32], targets: Targets, *, seed: int = 0) -> ClassMeanEdit:
        columns_of(targets)
        x = states.astype(np.float64)
        means = class_means(x, targets) if targets.n_classes else class_slopes(x, targets)
        if self.shared:
            shares = np.bincount(targets.strata, minlength=means.shape[1]) / len(x)
            means = np.einsum("w,kwd->kd", shares, means)[:, None]
        return ClassMeanEdit(means, self.dose, targets.n_classes)


def class_means(x: Floats, targets: Targets) -> Floats:
    """Return the means of rows `(N, D)` by class and stratum, `(K, W, D)`; a class that does not occur in a stratum has
    there the stratum's mean plus the class's mean minus the mean of all rows.
    """
    k, n_strata = targets.n_classes, int(targets.strata.max()) + 1
    cells = targets.z.astype(np.int64) * n_strata + targets.strata
    counts = np.bincount(cells, minlength=k * n_strata).reshape(k, n_strata)
    is_in = (cells[None] == np.arange(k * n_strata)[:, None]).astype(np.float64)
    sums: Floats = (is_in @ x).reshape(k, n_strata, -1)
    overall = sums.sum((0, 1)) / len(x)
    of_class = sums.sum(1) / np.maximum(counts.sum(1), 1)[:, None]
    of_stratum = sums.sum(0) / np.maximum(counts.sum(0), 1)[:, None]
    expected = of_stratum[None] + of_class[:, None] - overall
    return np.where(counts[..., None] > 0, sums / np.maximum(counts, 1)[..., None], expected)


def class_slopes(x: Floats, targets: Targets) -> Floats:
    """Return the least-squares slopes of rows `(N, D)` on real values by stratum, `(1, W, D)`; 0 where the value does
    not vary.
    """
    n_strata = int(targets.strata.max()) + 1
    slopes = np.zeros((1, n_strata, x.shape[1]))
    for w in np.unique(targets.strata):
        inside = targets.strata == w
        z = targets.z[inside] - targets.z[inside].mean()
        if np.any(z):
            slopes[0, w] = z @ x[inside] / (z @ z)
    return slopes


MEMBER = ClassMean
