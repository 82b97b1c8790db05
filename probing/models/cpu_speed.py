"""Speeds up models on the CPU: linear layers with weights packed for oneDNN, and a limit on the kernels that PyTorch
caches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

__path__: list[str] = []  # so that modules it had in version 0.1 are looked for, and found by their new names


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this PyTorch and this processor can multiply packed matrices of a data type (float32, and bfloat16
    on some processors).
    """
    names = ("_reorder_linear_weight", "_linear_pointwise")
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if not has_onednn or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    if dtype is torch.bfloat16:
        has_support = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return has_support is not None and bool(has_support())
    return dtype is torch.float32


def packed(weight: Tensor) -> Tensor:
    """Return a copy of a matrix `(out, in)` in the packed layout of oneDNN that `product` multiplies by."""
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return copy


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return states `(…, in)` times the transpose of a packed matrix `(out, in)`, plus a bias `(out,)`, as `(…, out)`.
    Terms are summed in another order than in PyTorch, so last bits may differ.
    """
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found


KEPT = 32  # products of one batch differ in the widths of the layers only: a handful
_CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # of oneDNN, and of PyTorch's layer over it


def bound_kernel_caches() -> None:
    """Limit the caches of oneDNN and PyTorch to `KEPT` kernels instead of 1024, unless the environment variables say
    otherwise.

    Batches differ in their number of pieces, so kernels are hardly ever used again, and each holds about a megabyte.
    The limit takes effect only if this process has not computed a product before; results are the same.
    """
    for name in _CAPACITIES:
        os.environ.setdefault(name, str(KEPT))


@contextmanager
def packed_linear_layers(model: nn.Module) -> Iterator[None]:
    """Within the block, linear layers on the CPU use packed weights; terms are summed in another order, so last bits
    may differ.

    This is done in float32, and in bfloat16 where the processor supports it.

    The packed weights take additional memory. Nothing is changed if PyTorch has no oneDNN, and layers whose class or
    `forward` is not exactly that of `nn.Linear` are left out. Hooks fire as usual. Weights must not change within the
    block.
    """
    linear = [module for module in model.modules() if _is_packable(module)]
    try:
        for module in linear:
            module.__dict__["forward"] = partial(product, weight=packed(module.weight), bias=module.bias)
        yield
    finally:
        for module in linear:
            module.__dict__.pop("forward", None)


def _is_packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    return module.weight.device.type == "cpu" and can_pack(module.weight.dtype)
