"""Makes the smallest affine change of states after which no linear probe does better than a constant (LEACE)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.intervention import Intervention, Targets
from probing.use.interventions._edits import AffineEdit, Floats, columns_of

UNCORRELATED = 1e-8  # canonical correlations that are rounding


class Leace(Intervention):
    """Erases a property by least-squares concept erasure: r(x) = x − W⁺PW(x − μ), with x a state, μ the mean state, z
    the property, W = (Σ_xx^½)⁺ and P the orthogonal projection onto the columns of WΣ_xz.

    Of all affine maps after which states have no covariance with the property, this one has the least mean squared
    change. A property of k classes enters as k − 1 indicator columns z. It is computed in float64.

    References:
        Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff and Biderman 2023, LEACE, Theorem 4.3.
    """

    erases: ClassVar[bool] = True

    def fit(self, states: NDArray[np.float32], targets: Targets, *, seed: int = 0) -> AffineEdit:
        columns = columns_of(targets)
        x = states.astype(np.float64)
        centre = x.mean(0)
        x -= centre
        z = columns - columns.mean(0)
        n = len(x)
        return eraser(centre, x.T @ x / n, x.T @ z / n, z.T @ z / n)


def eraser(centre: Floats, within: Floats, cross: Floats, of_z: Floats) -> AffineEdit:
    """Compute the LEACE eraser from means and covariances of states x and indicator columns z, and return it.

    Args:
        centre: `(D,)` the mean μ.
        within: `(D, D)` covariance Σ_xx.
        cross: `(D, c)` covariance Σ_xz.
        of_z: `(c, c)` covariance Σ_zz; columns are scaled by it, so that singular values of WΣ_xz are correlations.
    """
    values, vectors = np.linalg.eigh(within)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    z_values, z_vectors = np.linalg.eigh(of_z)
    z_kept = z_values > 1e-12 * max(z_values[-1], 0.0)
    scaled = cross @ (z_vectors[:, z_kept] / np.sqrt(z_values[z_kept]))
    left, correlations, _ = np.linalg.svd((vectors.T @ scaled) / roots[:, None], full_matrices=False)
    left = left[:, correlations > UNCORRELATED]
    return AffineEdit(vectors @ (roots[:, None] * left), vectors @ (left / roots[:, None]), centre)


MEMBER = Leace
