"""Replaces every state by the mean state."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.intervention import Intervention, Targets
from probing.use.interventions._edits import ConstantEdit


class MeanAblation(Intervention):
    """Replaces the whole state by the mean over the rows that `fit` was given, which removes all information at the
    place.
    """

    erases: ClassVar[bool] = True

    def fit(self, states: NDArray[np.float32], targets: Targets, *, seed: int = 0) -> ConstantEdit:
        return ConstantEdit(states.mean(0, dtype=np.float64).astype(np.float32))


MEMBER = MeanAblation
