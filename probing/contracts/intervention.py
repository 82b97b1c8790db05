"""Defines `Intervention`, the base class of interventions, which are fitted on some rows and edit the states of others,
and `Edit`, the base class of fitted interventions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Targets:
    """Holds the labels and strata of n rows (words or sentences). Rows that agree in all covariates are in one stratum.

    Attributes:
        z: `(n,)` class codes from 0 to K − 1 (int64), or real values (float64).
        strata: `(n,)` code of the stratum of each row.
        n_classes: K; 0 for real values.
    """

    z: NDArray[np.int64] | NDArray[np.float64]
    strata: NDArray[np.int64]
    n_classes: int

    def take(self, rows: NDArray[np.int64]) -> Targets:
        """Return the targets of the rows with these indices, in the order given."""
        return Targets(self.z[rows], self.strata[rows], self.n_classes)


class Edit(ABC):
    """Base class of fitted edits: `apply` takes states and returns edited ones."""

    @abstractmethod
    def apply(
        self, states: NDArray[np.float32], targets: Targets, goals: NDArray[np.int64] | NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Return the edited states, `(n, D)`.

        Args:
            states: `(n, D)` states to edit.
            targets: labels and strata (sets of rows that agree in all covariates) of these rows.
            goals: `(n,)` the class or value that each row is to have after the edit; erasers ignore it.
        """

    @property
    def rank(self) -> int:
        """Number of dimensions of the subspace that the edit changes."""
        return 0

    @property
    def latents(self) -> Sequence[int]:
        """Numbers of the latents of a dictionary that the edit sets; () if it sets none."""
        return ()

    @property
    def active_latents(self) -> Sequence[int]:
        """The members of `latents` that are active on at least one row that the edit was fitted on."""
        return self.latents

    def influence(
        self,
        states: NDArray[np.float32],
        targets: Targets,
        goals: NDArray[np.int64] | NDArray[np.float64],
        sensitivity: NDArray[np.float64],
    ) -> NDArray[np.float64] | None:
        """Return influence-function values `(N,)`: to first order, how much each of the N rows that the edit was fitted
        on contributes to the error of a number computed from edited states. None if they are not known; the confidence
        interval of the number then does not cover the noise of fitting the edit.

        Args:
            states, targets, goals: n rows that are edited, as for `apply`.
            sensitivity: `(n, D)` derivatives of the number with respect to the edited states.
        """
        return None


class Intervention(ABC):
    """Base class of interventions, which edit states after a fit on labelled states. Before `fit`, an object holds only
    its options. Each intervention is one file of `interventions/`, which names its class as `MEMBER`.

    Class attributes:
        erases: whether it removes a property, instead of giving it another value.
        decides: whether verdicts may use it; other interventions are reported beside verdicts, for comparison with the
            literature.
    """

    erases: ClassVar[bool] = False
    decides: ClassVar[bool] = False

    @property
    def files(self) -> Sequence[Path]:
        """Files that the intervention reads; results are measured again if one of them changes."""
        return ()

    def edits(self, site: str) -> bool:
        """Return whether the intervention can be made at this site."""
        return True

    def check(self, site: str, width: int, model: Mapping[str, Any] | None) -> None:  # noqa: B027 (few need it)
        """Raise an error if the intervention was made for other states than those at `site`, which have this `width`
        and come from this `model` (its identity; None if not known). It is called before anything is computed.
        """

    @abstractmethod
    def fit(self, states: NDArray[np.float32], targets: Targets, *, seed: int) -> Edit:
        """Fit the edit on states `(N, D)` and their labels and strata (`targets`), and return it; `self` is never
        changed. `seed` determines all random choices.

        Raises:
            DegenerateDesign: the rows have one class only, or nothing can be learned from them.
        """
