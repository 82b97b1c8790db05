"""The layout of the states of a block: which axes are inputs and pieces, and what else is in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Says which axes of the tensor that blocks hand on are inputs and pieces, and where the first piece lies.

    Nearly all blocks hand on `(B, T, D)`. Some have pieces first; some carry several streams, which together are the
    state of a piece; some lengthen inputs, by padding or by pieces of their own.

    Attributes:
        inputs, pieces: the axes.
        skipped: places before the first piece; None: there are more places than pieces, and it is not known which.
        is_longer: whether there are more places than pieces.
    """

    inputs: int = 0
    pieces: int = 1
    skipped: int | None = 0
    is_longer: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether states are `(B, T, D)`, or that with (B, T) flattened."""
        return self == Layout()

    def aligned(self, state: Tensor, shape: tuple[int, int]) -> Tensor | None:
        """Return a state, as blocks hand it on, as `(B, T, D)`; None: it has another form."""
        n, length = shape
        if state.ndim < 2:
            return None
        if self.is_plain and (state.shape[:2] == shape or (state.ndim == 2 and len(state) == n * length)):
            return state.reshape(n, length, -1)
        if state.ndim <= max(self.inputs, self.pieces) or self.skipped is None or self.is_plain:
            return None
        moved = state.movedim((self.inputs, self.pieces), (0, 1))
        found = moved[:, self.skipped : self.skipped + length]
        return found.reshape(n, length, -1) if found.shape[:2] == shape else None

    def spread(self, states: Tensor, raw: Tensor) -> Tensor:
        """Put states `(B, T, D)` in the place of those in `raw`: the inverse of `aligned`."""
        if self.is_plain:
            return states.reshape(raw.shape)
        moved, start, length = raw.movedim((self.inputs, self.pieces), (0, 1)), self.skipped or 0, states.shape[1]
        inner = states.reshape(*states.shape[:2], *moved.shape[2:])
        whole = torch.cat([moved[:, :start], inner, moved[:, start + length :]], 1)
        return whole.movedim((0, 1), (self.inputs, self.pieces))


PLAIN = Layout()


def layout_of(state: Tensor, shape: tuple[int, int]) -> Layout | None:
    """Return the layout of a state of (B, T) pieces, two numbers that no other axis has; None: it is not one state a
    piece.
    """
    n, length = shape
    if state.shape[:2] == shape or (state.ndim == 2 and len(state) == n * length):
        return Layout()
    axes = [[place for place, size in enumerate(state.shape) if size == wanted] for wanted in shape]
    if state.ndim >= 3 and all(len(places) == 1 for places in axes):
        return Layout(axes[0][0], axes[1][0])
    if state.ndim == 3 and len(state) == n and state.shape[1] > length:
        return Layout(skipped=None, is_longer=True)
    return None


def shared_layout(states: list[Tensor], shape: tuple[int, int]) -> Layout | None:
    """Return the layout that all these states have; None: there is none, or their sizes differ."""
    found = {layout_of(state, shape) for state in states}
    sizes = {tuple(state.shape) for state in states if state.ndim > 2}
    return next(iter(found)) if len(found) == 1 and len(sizes) <= 1 else None
