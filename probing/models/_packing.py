"""Faster matrix products on a processor: weights laid out once for oneDNN, as PyTorch's own compiler does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn


@contextmanager
def packed_linear_layers(model: nn.Module) -> Iterator[None]:
    """Within the block, linear layers on the CPU use packed weights: the same sums, in another order.

    In float32, and in bfloat16 where the processor has it.

    Costs a second copy of those weights. Changes nothing where PyTorch has no oneDNN, and leaves alone every layer
    whose class or forward is not the ordinary one. Hooks fire as ever. Weights must not change within the block.
    """
    packed = [module for module in model.modules() if _is_packable(module)] if _is_available() else []
    try:
        for module in packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)
            module.__dict__["forward"] = partial(_linear, weight, module.bias)
        yield
    finally:
        for module in packed:
            module.__dict__.pop("forward", None)


def _is_available() -> bool:
    names = ("_reorder_linear_weight", "_linear_pointwise")
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return has_onednn and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _is_packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    return module.weight.device.type == "cpu" and _is_packed_dtype(module.weight.dtype)


def _is_packed_dtype(dtype: torch.dtype) -> bool:
    if dtype is torch.bfloat16:
        has_support = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return has_support is not None and bool(has_support())
    return dtype is torch.float32


def _linear(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product
