"""A function of the final states, for models without a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from probing.behaving import Behaviour, Outputs, Readout, Texts
from probing.errors import BadParameter, NoBehaviour, unknown_name

Function = Callable[[Tensor, Tensor], Tensor]


def mean(states: Tensor, real: Tensor) -> Tensor:
    """Mean over real pieces, as sentence encoders pool: special ones too."""
    weights = real[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def cls(states: Tensor, real: Tensor) -> Tensor:
    """The first piece."""
    return states[torch.arange(len(states), device=states.device), real.int().argmax(1)]


def last(states: Tensor, real: Tensor) -> Tensor:
    """The last piece."""
    from_end = real.flip(1).int().argmax(1)
    return states[torch.arange(len(states), device=states.device), real.shape[1] - 1 - from_end]


BUILT_IN: dict[str, Function] = {"mean": mean, "cls": cls, "last": last}


class FinalStates(Behaviour):
    """A function of the final states: `mean` over pieces, `cls`, `last`, or your own.

    Final states are those behind the model's last norm. A function of your own, `function(states, real)`, is given
    `(B, T, D)` states and `(B, T)` bool, false for padding, and returns `(B, V)`; it must be differentiable.
    """

    source: ClassVar[Literal["logits", "output", "states"]] = "states"

    def __init__(self, *, function: str | Function = "mean") -> None:
        """
        Args:
            function: `mean`, `cls`, `last`, or a function of states and mask.

        Raises:
            BadParameter: an unknown name.
        """
        if isinstance(function, str) and function not in BUILT_IN:
            raise unknown_name("readout", function, BUILT_IN, error=BadParameter)
        self.function = function

    def fit(self, texts: Texts, clean: Callable[[], Iterable[Outputs]]) -> Readout:
        function = BUILT_IN[self.function] if isinstance(self.function, str) else self.function

        def read(outputs: Outputs) -> Tensor:
            return function(outputs.values, outputs.real).float()

        first = next(iter(clean()))
        found = read(first)
        if found.ndim != 2 or len(found) != len(first.values):
            raise NoBehaviour("a readout gives one vector a row", needed=f"({len(first.values)}, V)",
                              found=f"shape {tuple(found.shape)}")  # fmt: skip
        return read


MEMBER = FinalStates
