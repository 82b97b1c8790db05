"""States of one place by fold, and the sums that probes of them are fitted from; both are read once for all uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.use.discriminant import Moments
from probing.use.experiment import FOLDS, Experiment

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FoldStates:
    """States of the rows of an experiment, by fold.

    Attributes:
        blocks: `(n_k, D)` float64, by fold.
        moments: by fold, of the property's classes or values.
    """

    blocks: tuple[Floats, ...]
    moments: tuple[Moments, ...]

    @classmethod
    def of(cls, experiment: Experiment, states: NDArray[np.floating]) -> FoldStates:
        """Split `(n, D)` states by fold, and sum them."""
        folds = [experiment.fold(k) for k in range(FOLDS)]
        blocks = tuple(np.asarray(states[rows], np.float64) for rows in folds)
        origin, z, n_classes = blocks[0].mean(0), experiment.z, experiment.n_classes
        moments = (Moments.of(h, z[rows], n_classes, origin) for h, rows in zip(blocks, folds, strict=True))
        return cls(blocks, tuple(moments))
