"""Edits shared by erasers, and the columns that stand for a property."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.contracts.intervention import Edit, Targets
from probing.errors import DegenerateDesign

Floats = NDArray[np.float64]
Goals = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AffineEdit(Edit):
    """Maps x to x − L Rᵀ(x − μ), an edit of rank r.

    Attributes:
        left, right: `(D, r)` L and R.
        centre: `(D,)` μ.
    """

    left: Floats
    right: Floats
    centre: Floats

    def transform(self, states: Floats) -> Floats:
        """Return the edited states, `(n, D)` float64."""
        wide = states.astype(np.float64)
        return np.asarray(wide - ((wide - self.centre) @ self.right) @ self.left.T)

    def apply(self, states: NDArray[np.float32], targets: Targets, goals: Goals) -> NDArray[np.float32]:
        return self.transform(states.astype(np.float64)).astype(states.dtype)

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])


@dataclass(frozen=True, eq=False)
class ConstantEdit(Edit):
    """Replaces every state by `value` `(D,)`."""

    value: NDArray[np.float32]

    def apply(self, states: NDArray[np.float32], targets: Targets, goals: Goals) -> NDArray[np.float32]:
        return np.broadcast_to(self.value.astype(states.dtype), states.shape).copy()

    @property
    def rank(self) -> int:
        return len(self.value)


def columns_of(targets: Targets) -> Floats:
    """Return indicators `(N, k - 1)` of all classes present but the first; for real values one column.

    With all k columns, whose sum is constant, rounding on ill-conditioned states would show a direction too many.

    Raises:
        DegenerateDesign: the property has one value.
    """
    if targets.n_classes:
        present = np.unique(targets.z)
        found: Floats = (targets.z[:, None] == present[None, 1:]).astype(np.float64)
    else:
        found = np.asarray(targets.z, dtype=np.float64)[:, None]
        found = found if len(found) and np.ptp(found) > 0 else found[:, :0]
    if not found.shape[1]:
        raise DegenerateDesign(
            "a property of one value cannot be intervened on",
            needed="two values or more",
            found=str(np.unique(targets.z)[:1]),
            next_step="give rows of other values",
        )
    return found
