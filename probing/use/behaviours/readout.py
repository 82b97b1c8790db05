"""Measures a function of the final states, for models without a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from probing.contracts.behaviour import Behaviour, Outputs, Readout, Texts
from probing.errors import BadParameter, NoBehaviour, unknown_name

Function = Callable[[Tensor, Tensor], Tensor]


def mean(states: Tensor, real: Tensor) -> Tensor:
    """Return the mean of the states of all tokens that are not padding, special tokens included, as sentence encoders
    pool: an array `(B, D)`. `states` are `(B, T, D)`: batch, tokens, width. `real` is a bool mask `(B, T)`, true at
    tokens that are not padding.
    """
    weights = real[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def cls(states: Tensor, real: Tensor) -> Tensor:
    """Return the state of the first token that is not padding (in a BERT, the token [CLS]): an array `(B, D)`. `states`
    are `(B, T, D)`: batch, tokens, width. `real` is a bool mask `(B, T)`, true at tokens that are not padding.
    """
    return states[torch.arange(len(states), device=states.device), real.int().argmax(1)]


def last(states: Tensor, real: Tensor) -> Tensor:
    """Return the state of the last token that is not padding: an array `(B, D)`. `states` are `(B, T, D)`: batch,
    tokens, width. `real` is a bool mask `(B, T)`, true at tokens that are not padding.
    """
    from_end = real.flip(1).int().argmax(1)
    return states[torch.arange(len(states), device=states.device), real.shape[1] - 1 - from_end]


BUILT_IN: dict[str, Function] = {"mean": mean, "cls": cls, "last": last}


class FinalStates(Behaviour):
    """Measures a function of the final states: their `mean` over tokens, that of the CLS token (`cls`), that of the
    `last` token, or a function of your own.

    Final states are those after the model's last norm.

    Args:
        function: `mean`, `cls`, `last`, or a differentiable function of your own. `function(states, real)` is given the
            states `(B, T, D)` (batch, tokens, width) and a bool mask `(B, T)`, true at tokens that are not padding, and
            returns `(B, V)`.
        weights: a safetensors file that holds one matrix, such as a linear head of your own, by which the result of the
            function is multiplied; None means no matrix.
    """

    source: ClassVar[Literal["logits", "output", "states"]] = "states"

    def __init__(self, *, function: str | Function = "mean", weights: str | None = None) -> None:
        """Store the options, which the class describes, and read the file.

        Raises:
            BadParameter: the name of the function is unknown, or the file does not hold one matrix.
        """
        if isinstance(function, str) and function not in BUILT_IN:
            raise unknown_name("readout", function, BUILT_IN, error=BadParameter)
        self.function = function
        self.weights = weights
        self._matrix = None if weights is None else _matrix(Path(weights))

    @property
    def files(self) -> tuple[Path, ...]:
        return () if self.weights is None else (Path(self.weights),)

    def fit(self, texts: Texts, clean: Callable[[], Iterable[Outputs]]) -> Readout:
        function = BUILT_IN[self.function] if isinstance(self.function, str) else self.function

        def read(outputs: Outputs) -> Tensor:
            found = function(outputs.values, outputs.real).float()
            return found if self._matrix is None else found @ self._matrix.to(found)

        first = next(iter(clean()))
        self._check_width(first.values.shape[-1])
        found = read(first)
        if found.ndim != 2 or len(found) != len(first.values):
            raise NoBehaviour(
                "a readout gives one vector a row",
                needed=f"({len(first.values)}, V)",
                found=f"shape {tuple(found.shape)}",
            )
        return read

    def _check_width(self, width: int) -> None:
        if self._matrix is not None and isinstance(self.function, str) and len(self._matrix) != width:
            raise NoBehaviour(
                "a readout's weights are of another width",
                needed=f"({width}, V)",
                found=f"shape {tuple(self._matrix.shape)}",
                where=str(self.weights),
            )


def _matrix(path: Path) -> Tensor:
    try:
        found = list(load_file(path).values())
    except Exception as error:  # the reader's own error is no type that it promises
        raise BadParameter(
            "no file of a readout's weights",
            needed="a safetensors file with one matrix (D, V)",
            found=str(error)[:200],
            where=str(path),
        ) from None
    if len(found) != 1 or found[0].ndim != 2 or not torch.isfinite(found[0]).all():
        shapes = ", ".join(str(tuple(one.shape)) for one in found) or "nothing"
        raise BadParameter("no matrix of a readout", needed="one finite matrix (D, V)", found=shapes, where=str(path))
    return found[0].float()


MEMBER = FinalStates
