"""A model's linear layers with packed weights: faster on a processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

from torch import nn

from probing.models.cpu_speed.packing import can_pack, packed, product


@contextmanager
def packed_linear_layers(model: nn.Module) -> Iterator[None]:
    """Within the block, linear layers on the CPU use packed weights: the same sums, in another order.

    In float32, and in bfloat16 where the processor has it.

    Costs a second copy of those weights. Changes nothing where PyTorch has no oneDNN, and leaves alone every layer
    whose class or forward is not the ordinary one. Hooks fire as ever. Weights must not change within the block.
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
