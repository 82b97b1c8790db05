"""Derives named seeds from one root seed, so that random draws do not depend on each other or on global state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def child_seed(root: int, *names: str | int) -> int:
    """Return a 32-bit seed that is determined by `root` and the sequence of names alone.

    The same names give the same seed on every machine; different names give independent seeds.
    """
    path = "\x1f".join([str(int(root)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big")


def generator(root: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator seeded by `child_seed(root, *names)`."""
    import numpy as np

    return np.random.default_rng(child_seed(root, *names))
