"""Weights that files need not hold, since the model computes them when it is built: sinusoids of positions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def is_recomputed(model: Any, key: str) -> bool:
    """Return whether the model's own initialisation gives a missing weight, whatever the seed.

    A weight that is trained may begin as a constant, as the scales of norms do: a constant counts only where it is not
    trained.

    Args:
        model: the loaded model.
        key: the weight's path.
    """
    path, _, name = key.rpartition(".")
    try:
        owner = model.get_submodule(path)
        weight: Tensor = getattr(owner, name)
        found = [_fresh(model, owner, name, seed) for seed in (0, 1)]
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    is_constant = bool((weight == weight.flatten()[0]).all())
    is_trained = isinstance(weight, nn.Parameter) and weight.requires_grad
    return not (is_constant and is_trained) and all(torch.equal(weight, fresh) for fresh in found)


def _fresh(model: Any, owner: nn.Module, name: str, seed: int) -> Tensor:
    """Return the weight as initialisation gives it in a copy of its module, which holds another before."""
    twin = copy.deepcopy(owner)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for tensor in [*twin.parameters(recurse=False), *twin.buffers(recurse=False)]:
            tensor.fill_(seed + 7)
            tensor.__dict__.pop("_is_hf_initialized", None)
        twin.__dict__.pop("_is_hf_initialized", None)
        model._init_weights(twin)
    found: Tensor = getattr(twin, name)
    return found
