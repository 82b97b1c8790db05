"""Checks that blocks run once each, and that each reads the output of the block before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from probing.models.discovery.tracing import first_tensor, given_state, is_same

if TYPE_CHECKING:
    from probing.models.adapters.huggingface import HuggingFaceTrunk


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
