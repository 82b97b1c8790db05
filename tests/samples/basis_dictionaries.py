"""Planted dictionaries: states that are sums of known directions, and dictionaries that hold them or do not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.dictionaries.dictionary import Dictionary

WIDTH = 24


def basis(width: int = WIDTH, seed: int = 0) -> NDArray[np.float64]:
    """Orthonormal directions, one a row."""
    return np.asarray(np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0].T)


def dictionary(directions: NDArray[Any], *, bias: float = 0.3, site: str = "resid.0", **options: Any) -> Dictionary:
    """A dictionary whose latents read and write these directions, above a threshold."""
    m, width = directions.shape
    parts: dict[str, Any] = {"encoder": directions.T, "encoder_bias": np.full(m, -bias), "decoder": directions}
    return Dictionary(architecture="standard", decoder_bias=np.zeros(width), site=site, **parts | options)


def both_ways(directions: NDArray[Any]) -> NDArray[Any]:
    """The directions, followed by their opposites."""
    return np.concatenate([directions, -directions])
