"""Lens: the contract of lenses, which turn a state of an inner site into a state for the end of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Lens(ABC):
    """Turns states of an inner site into states that the end of the model reads as its output.

    Attributes:
        name: name in results.
        about: one sentence on how its outputs come about.
    """

    name: str = ""
    about: str = ""

    @abstractmethod
    def reads(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Return those of the sites that the lens can read."""

    @abstractmethod
    def at(self, site: str, states: Tensor) -> Tensor:
        """Return the states `(n, D)` to put in as `resid.L`, for states `(n, D)` at a site `resid.l`."""
