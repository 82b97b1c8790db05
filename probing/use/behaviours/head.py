"""Measures the output of a sequence classification or regression head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

from probing.contracts.behaviour import Behaviour, Outputs, Readout, Texts
from probing.errors import NoBehaviour


class Head(Behaviour):
    """Measures the output of the model's own head for a whole text: logits of classes, or predicted numbers.

    Args:
        regression: whether the outputs are predicted numbers, not logits of classes.
    """

    source: ClassVar[Literal["logits", "output", "states"]] = "output"

    def __init__(self, *, regression: bool = False) -> None:
        """Store the option; the class describes it."""
        self.regression = regression

    @property
    def are_logits(self) -> bool:
        return not self.regression

    def fit(self, texts: Texts, clean: Callable[[], Iterable[Outputs]]) -> Readout:
        first = next(iter(clean())).values
        if first.ndim != 2 or (first.shape[1] < 2 and not self.regression):
            raise NoBehaviour(
                "this head does not give classes of a text",
                needed="(B, classes), two or more",
                found=f"shape {tuple(first.shape)}",
                next_step="regression=true for numbers, or another behaviour",
            )
        return lambda outputs: outputs.values.float()


MEMBER = Head
