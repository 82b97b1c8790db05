"""LEACE: the smallest affine change after which no linear probe does better than a constant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.contracts.intervention import Intervention, Targets
from probing.errors import BadParameter
from probing.states.store import Moments
from probing.use.interventions._edits import AffineEdit, Floats, columns_of

UNCORRELATED = 1e-8  # canonical correlations that are rounding


class Leace(Intervention):
    """Least-squares erasure of a property: r(x) = x − W⁺PW(x − μ), W = (Σ_xx^½)⁺, P onto the columns of WΣ_xz.

    Of all affine maps that leave no covariance with the property's columns, it moves states least. Classes enter as
    k − 1 columns. Computed in float64, from states or from moments gathered in a stream.

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

    def fit_moments(self, moments: Moments, sums: CrossSums) -> AffineEdit:
        """Return the eraser from a store's moments, and the sums that only this property needs beside them.

        Raises:
            BadParameter: they are of different numbers of rows.
            DegenerateDesign: the property has one value.
        """
        if sums.count != moments.count:
            raise BadParameter("moments and sums are of other rows", needed=f"{moments.count} rows",
                               found=f"{sums.count}", where=moments.site)  # fmt: skip
        return eraser(moments.mean, moments.covariance(), *sums.covariances(moments.mean))


@dataclass(frozen=True, eq=False)
class CrossSums:
    """Sums that a property adds to moments: over rows of states x and columns z, added in a stream.

    Attributes:
        count: rows.
        z: `(c,)` sum of z.
        xz: `(D, c)` sum of x zᵀ.
        zz: `(c, c)` sum of z zᵀ.
    """

    count: int
    z: Floats
    xz: Floats
    zz: Floats

    @classmethod
    def empty(cls, width: int, columns: int) -> Self:
        """Return the sums over no rows."""
        return cls(0, np.zeros(columns), np.zeros((width, columns)), np.zeros((columns, columns)))

    def add(self, states: NDArray[np.float32], columns: ArrayLike) -> Self:
        """Return the sums with `(n, D)` states and `(n, c)` columns added."""
        x, z = states.astype(np.float64), np.asarray(columns, dtype=np.float64)
        return replace(self, count=self.count + len(x), z=self.z + z.sum(0), xz=self.xz + x.T @ z, zz=self.zz + z.T @ z)

    def covariances(self, mean: Floats) -> tuple[Floats, Floats]:
        """Return Σ_xz `(D, c)` and Σ_zz `(c, c)`, given the mean of the states."""
        n = self.count
        of_z = self.z / n
        return self.xz / n - np.outer(mean, of_z), self.zz / n - np.outer(of_z, of_z)


def eraser(centre: Floats, within: Floats, cross: Floats, of_z: Floats) -> AffineEdit:
    """Return the eraser for these moments.

    Args:
        centre: `(D,)` μ.
        within: `(D, D)` Σ_xx.
        cross: `(D, c)` Σ_xz.
        of_z: `(c, c)` Σ_zz, by which columns are scaled, so that singular values of WΣ_xz are correlations.
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
