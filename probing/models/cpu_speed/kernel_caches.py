"""Limits how much PyTorch keeps of what it prepares for matrix products of one shape."""

from __future__ import annotations

import os

KEPT = 32  # products of one batch differ in the widths of the layers only: a handful
_CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # of oneDNN, and of PyTorch's layer over it


def bound_kernel_caches() -> None:
    """Keep kernels and buffers of the last `KEPT` shapes, not of 1024, unless the environment says how many.

    Every batch has its own number of pieces, so that no kernel is met again, and each holds about a megabyte. Takes
    effect where no product was computed in this process before; results are the same.
    """
    for name in _CAPACITIES:
        os.environ.setdefault(name, str(KEPT))
