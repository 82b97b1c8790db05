"""Vectors with planted codes, read by a known function: what tests of interventions measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.edited_model import Instrument, Place
from probing.use.measure import Property

HERE = Place("h")


class Vectors(Instrument):
    """y = reads · h / |h|, or without the norm; float64 throughout."""

    def __init__(self, h: NDArray[np.float64], reads: NDArray[np.float64], *, norm: bool) -> None:
        self.h, self.reads, self.norm = h, reads, norm

    @property
    def places(self) -> tuple[Place, ...]:
        return (HERE,)

    @property
    def n_rows(self) -> int:
        return len(self.h)

    @property
    def has_norms(self) -> bool:
        return True

    def clean(self) -> NDArray[np.float64]:
        return self.run_from("h", np.arange(len(self.h)), {"": torch.from_numpy(self.h)}).numpy()

    def states(self, place: Place) -> NDArray[np.float64]:  # type: ignore[override]
        return self.h

    def run_from(
        self, site: str, rows: NDArray[np.int64], states: Mapping[str, Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        x = states[""]
        if self.norm:
            scaled = torch.from_numpy(self.h[rows]) if frozen_norms else x
            x = x / torch.sqrt((scaled**2).mean(-1, keepdim=True))
        return x @ torch.from_numpy(self.reads.T.copy())


@dataclass
class Sample:
    """z is at coordinate 0, a covariate c (correlated with z) at 1, a free one a at 2; all coded ±1."""

    instrument: Vectors
    prop: Property


def sample(
    seed: int,
    *,
    gain: float = 0.0,
    rho: float = 0.0,
    n: int = 3000,
    code: float = 1.0,
    norm: bool = True,
    width: int = 24,
    mediated: float = 1.0,
    noise: float = 0.5,
) -> Sample:
    """Vectors whose code of z is read with a gain, or not.

    Args:
        seed: of everything.
        gain: with which z's coordinate is read.
        rho: correlation of z and c.
        n: rows.
        code: length of z's code.
        norm: divide by the root mean square.
        width: D.
        mediated: share of the read that comes through the states; the rest comes from z itself, past them.
        noise: SD.
    """
    rng = np.random.default_rng(seed)
    z, a = rng.integers(0, 2, n), rng.integers(0, 2, n)
    c = np.where(rng.random(n) < (1 + rho) / 2, z, 1 - z)
    h = rng.normal(0, noise, (n, width))
    for column, (labels, size) in enumerate(((z, code), (c, 1.0), (a, 1.0))):
        h[:, column] += size * (2 * labels - 1)
    reads = np.zeros((8, width))
    reads[:, 1:3] = 1.5 * rng.normal(size=(8, 2))
    reads[:, 10:20] = 0.25 * rng.normal(size=(8, 10))
    direction = rng.normal(size=8)
    reads[:, 0] = mediated * gain * direction
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    past = (1 - mediated) * gain * direction[None, :] * (2 * z - 1)[:, None]
    instrument = Past(h @ turn.T, reads @ turn.T, past, norm=norm)
    return Sample(instrument, Property("z", z, 2, np.arange(n), {"c": (c, 2), "a": (a, 2)}))


class Past(Vectors):
    """With a part of the behaviour that does not come from the states."""

    def __init__(
        self, h: NDArray[np.float64], reads: NDArray[np.float64], past: NDArray[np.float64], *, norm: bool
    ) -> None:
        super().__init__(h, reads, norm=norm)
        self.past = past

    def run_from(
        self, site: str, rows: NDArray[np.int64], states: Mapping[str, Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        return super().run_from(site, rows, states, frozen_norms=frozen_norms) + torch.from_numpy(self.past[rows])
