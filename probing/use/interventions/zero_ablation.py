"""Replaces every state by 0."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.intervention import Intervention, Targets
from probing.use.interventions._edits import ConstantEdit


class ZeroAblation(Intervention):
    """Replaces the whole state by 0. This removes all information at the place, but 0 is far from all states that the
    model computes.
    """

    erases: ClassVar[bool] = True

    def fit(self, states: NDArray[np.float32], targets: Targets, *, seed: int = 0) -> ConstantEdit:
        return ConstantEdit(np.zeros(states.shape[1], dtype=np.float32))


MEMBER = ZeroAblation
