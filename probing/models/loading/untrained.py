"""The untrained twin: the same architecture with random weights, from a seed; a control for what training gave."""

from __future__ import annotations

import copy

import torch
from torch import nn

from probing.errors import UnsupportedModel


def untrained_twin(model: nn.Module, seed: int) -> nn.Module:
    """Return a model of the same class and configuration whose weights are drawn by its own initialisation.

    It is built from the configuration: initialising a loaded model anew changes nothing in recent transformers, and a
    "random" baseline made that way is the pretrained model.

    Args:
        model: a pretrained model.
        seed: of the draws; the global generator is left as it was.

    Raises:
        UnsupportedModel: a weight matrix is the pretrained one's.
    """
    parameter = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin: nn.Module = type(model)(copy.deepcopy(model.config))
    trained = dict(model.named_parameters())
    same = [
        name
        for name, weight in twin.named_parameters()
        if weight.ndim > 1 and torch.equal(weight, trained[name].detach().cpu().to(weight.dtype))
    ]
    if same:
        raise UnsupportedModel(
            "the untrained twin has pretrained weights",
            needed="new draws in every weight matrix",
            found=f"{len(same)} the same: {', '.join(same[:3])}",
            where=type(model).__name__,
            next_step="report this family",
        )
    return twin.to(device=parameter.device, dtype=parameter.dtype).eval()
