"""Projects out the directions of one linear probe after another, until a probe is hardly better than a constant
prediction (INLP).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from probing.contracts.intervention import Intervention, Targets
from probing.errors import BadParameter
from probing.seeds import generator
from probing.use.interventions._edits import AffineEdit, Floats, columns_of

HELD_OUT = 5  # one row of so many tells when to stop


@dataclass(frozen=True, eq=False)
class NullspaceEdit(AffineEdit):
    """Removes the probes' directions from states, by projection onto the subspace that is left.

    Attributes:
        before: score (accuracy or R²) of the first probe on held-out rows, minus that of a constant prediction.
        after: the same for the last probe.
        rounds: number of probes fitted.
    """

    before: float
    after: float
    rounds: int


class Inlp(Intervention):
    """Erases a property by iterative nullspace projection: projects out the directions of one probe after another,
    until a probe exceeds the majority rate by at most `tolerance` on held-out rows (or after `rounds` probes).

    The `rank` of the edit is the number of dimensions removed, often far more than LEACE removes. For real values the
    probes are ridge regressions, scored by R².

    Args:
        tolerance: accuracy (or R²) above that of a constant prediction at which no further probe is fitted, from 0 to
            1.
        rounds: largest number of probes.
        l2: L2 penalty of a probe relative to the mean loss per row (scikit-learn's C is 1 / (l2 · rows)), on states
            scaled to an overall standard deviation of 1.

    References:
        Ravfogel, Elazar, Gonen, Twiton and Goldberg 2020, Null It Out, Algorithm 1.
    """

    erases: ClassVar[bool] = True

    def __init__(self, *, tolerance: float = 0.01, rounds: int = 100, l2: float = 1e-3) -> None:
        """Store the options; the class describes them.

        Raises:
            BadParameter: an option is out of range.
        """
        if not 0 <= tolerance < 1 or rounds < 1 or l2 <= 0:
            raise BadParameter(
                "inlp is out of range",
                needed="0 ≤ tolerance < 1, rounds ≥ 1, l2 > 0",
                found=f"{tolerance}, {rounds}, {l2}",
            )
        self.tolerance = tolerance
        self.rounds = rounds
        self.l2 = l2

    def fit(self, states: NDArray[np.float32], targets: Targets, *, seed: int = 0) -> NullspaceEdit:
        columns_of(targets)
        x = states.astype(np.float64)
        scale = float(x.std(0).mean()) or 1.0
        z = targets.z if targets.n_classes else np.asarray(targets.z, dtype=np.float64)
        is_held = np.zeros(len(x), dtype=bool)
        is_held[generator(seed, "intervention", "inlp").permutation(len(x))[: max(1, len(x) // HELD_OUT)]] = True
        basis, scores = np.zeros((x.shape[1], 0)), list[float]()
        for _ in range(self.rounds):
            rest = x - (x @ basis) @ basis.T
            directions, score = self._probe(rest / scale, z, is_held, is_real=not targets.n_classes)
            scores.append(score)
            if score <= self.tolerance:
                break
            grown = _extended(basis, directions)
            if grown.shape[1] == basis.shape[1]:
                break
            basis = grown
        return NullspaceEdit(basis, basis, np.zeros(x.shape[1]), scores[0], scores[-1], len(scores))

    def _probe(
        self, x: Floats, z: NDArray[np.generic], is_held: NDArray[np.bool_], *, is_real: bool
    ) -> tuple[Floats, float]:
        """Return the directions of a probe, `(D, c)`, and its held-out score above a constant."""
        n = int((~is_held).sum())
        if is_real:
            ridge = Ridge(alpha=self.l2 * n).fit(x[~is_held], z[~is_held])
            return np.atleast_2d(ridge.coef_).T, float(ridge.score(x[is_held], z[is_held]))
        if len(np.unique(z[~is_held])) < 2:
            return np.zeros((x.shape[1], 0)), 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe = LogisticRegression(C=1 / (self.l2 * n), max_iter=500).fit(x[~is_held], z[~is_held])
        majority = np.unique(z[is_held], return_counts=True)[1].max() / is_held.sum()
        return probe.coef_.T, float(probe.score(x[is_held], z[is_held]) - majority)


def _extended(basis: Floats, directions: Floats) -> Floats:
    """Return the basis and what of the directions lies outside it, orthonormal."""
    outside = directions - basis @ (basis.T @ directions)
    found, sizes, _ = np.linalg.svd(outside, full_matrices=False)
    found = found[:, sizes > 1e-8 * max(float(np.linalg.norm(directions)), 1e-300)]
    return np.asarray(np.linalg.qr(np.concatenate([basis, found], axis=1))[0])


MEMBER = Inlp
