"""Defines `Lens`, the base class of lenses, which turn a state of an earlier site into a state that the model's final
norm and unembedding can read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Lens(ABC):
    """Base class of lenses: each maps states of an earlier site to states of the last site `resid.L`, so that the
    model's own final norm and unembedding turn them into logits.

    Attributes:
        name: name in results.
        about: one sentence on how it maps the states.
    """

    name: str = ""
    about: str = ""

    @abstractmethod
    def reads(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Return those of the sites that the lens can read."""

    @abstractmethod
    def at(self, site: str, states: Tensor) -> Tensor:
        """Map states `(n, D)` of a site `resid.l` to states `(n, D)` that take the place of those at the last site
        `resid.L`, and return these.
        """
