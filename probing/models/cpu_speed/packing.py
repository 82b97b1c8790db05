"""Products with a fixed matrix: it is laid out once for oneDNN, as PyTorch's own compiler does it."""

from __future__ import annotations

import torch
from torch import Tensor


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this PyTorch and this processor multiply packed matrices of a dtype: float32, and bfloat16 on
    some.
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
    """Return a copy of a matrix `(out, in)` in the layout that `product` takes."""
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return copy


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return states `(…, in)` times the transpose of a packed `(out, in)` matrix, plus a bias `(out,)`: `(…, out)`.
    Sums are in another order than PyTorch's own.
    """
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found
