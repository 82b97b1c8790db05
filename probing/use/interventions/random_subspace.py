"""Erases random directions, as a control for interventions that erase a property."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.intervention import Intervention, Targets
from probing.errors import BadParameter
from probing.seeds import generator
from probing.use.interventions._edits import AffineEdit, Floats, columns_of
from probing.use.interventions.leace import Leace

DISPLACEMENTS = ("own", "leace")


class RandomSubspace(Intervention):
    """Erases random directions by projection. They are drawn from N(0, Σ), with Σ the covariance of states, and made
    orthonormal.

    Compared with an eraser, they show how specific its effect is; they are not a test of significance.

    Args:
        rank: number of directions; 0 means as many as LEACE removes at most, K − 1 for a property of K classes and 1
            for real values.
        displacement: how far states move: `own`, as far as the projection moves them; `leace`, the change is scaled so
            that they move as far (root mean square over the rows of `fit`) as with LEACE.

    References:
        Elazar, Ravfogel, Jacovi and Goldberg 2021, Amnesic Probing, §4.1 (the control of random directions).
    """

    erases: ClassVar[bool] = True

    def __init__(self, *, rank: int = 0, displacement: str = "own") -> None:
        """Store the options; the class describes them.

        Raises:
            BadParameter: the rank is negative, or the displacement is unknown.
        """
        if rank < 0 or displacement not in DISPLACEMENTS:
            raise BadParameter(
                "no such random subspace",
                needed=f"rank 0 or more, displacement {DISPLACEMENTS}",
                found=f"rank {rank}, displacement {displacement!r}",
            )
        self.rank = rank
        self.displacement = displacement

    def fit(self, states: NDArray[np.float32], targets: Targets, *, seed: int = 0) -> AffineEdit:
        rank = self.rank or columns_of(targets).shape[1]
        x = states.astype(np.float64)
        centre = x.mean(0)
        x -= centre
        draws = generator(seed, "intervention", "random_subspace").standard_normal((len(x), rank))
        basis, sizes, _ = np.linalg.svd(x.T @ draws, full_matrices=False)  # N(0, Σ), as draws of the rows
        basis = basis[:, sizes > 1e-10 * max(float(sizes.max(initial=0.0)), 1e-300)]
        scale = 1.0
        if self.displacement == "leace":
            aim = Leace().fit(states, targets, seed=seed)
            scale = _moved(aim, states) / max(_root_mean_square(x @ basis), 1e-300)
        return AffineEdit(scale * basis, basis, centre)


def _moved(edit: AffineEdit, states: NDArray[np.float32]) -> float:
    wide = states.astype(np.float64)
    return _root_mean_square(edit.transform(wide) - wide)


def _root_mean_square(rows: Floats) -> float:
    return float(np.sqrt(np.square(rows).sum(1).mean()))


MEMBER = RandomSubspace
