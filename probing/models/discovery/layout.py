"""The layout of the states of a block: which axes are inputs and pieces, and what else is in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probing.models.discovery.tracing import first_tensor, given_state, is_same

if TYPE_CHECKING:
    from probing.models.adapters.huggingface import HuggingFaceTrunk


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


def repeated_block(trunk: HuggingFaceTrunk, ids: Tensor, mask: Tensor) -> str | None:
    """Return what a block that does not run exactly once in a forward pass does instead; else None."""
    times = trunk.times_met(ids, mask, [f"resid.{layer}" for layer in range(len(trunk.blocks))])
    return next((f"block {i} runs {n} times" for i, n in enumerate(times.values()) if n != 1), None)


def broken_link(trunk: HuggingFaceTrunk, ids: Tensor, mask: Tensor) -> str | None:
    """Return the first site `resid.l` that is not the output of block l-1, or is changed after it was read; else
    None.
    """
    blocks = len(trunk.blocks)
    outputs: dict[int, list[Tensor]] = {layer: [] for layer in range(blocks)}
    inputs: dict[int, list[Tensor]] = {layer: [] for layer in range(blocks)}
    handles = [b.register_forward_hook(output_reader(outputs[i])) for i, b in enumerate(trunk.blocks)]
    handles += [b.register_forward_hook(copier(inputs[i]), with_kwargs=True) for i, b in enumerate(trunk.blocks)]
    try:
        states = trunk.read(ids, mask, [f"resid.{layer}" for layer in range(blocks + 1)])
    finally:
        for handle in handles:
            handle.remove()
    for layer in range(blocks + 1):
        site = f"resid.{layer}"
        state = states[site]
        chained = layer == 0 or is_same(state, trunk.aligned(outputs[layer - 1][0], ids, site))
        if not chained or (layer < blocks and not is_same(state, trunk.aligned(inputs[layer][0], ids, site))):
            return site
    return None


def copier(into: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        state = given_state(args, kwargs)
        if state is not None:
            into.append(state.clone())

    return hook


def output_reader(into: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        state = first_tensor(output)
        if isinstance(state, Tensor):
            into.append(state)

    return hook
