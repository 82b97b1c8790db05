"""Runs modules of a block with other arguments or another output, and notes how they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from probing.models.adapters.huggingface import HuggingFaceTrunk
from probing.models.discovery.tracing import first_tensor


class BlockCalls:
    """Notes how blocks, and the attention in them, are called in a pass over one prompt of a length; masks, positions
    and rotary tables are those of the model.
    """

    def __init__(self, trunk: HuggingFaceTrunk) -> None:
        self._trunk = trunk
        paths = [trunk.modules[f"heads.{k}"].rpartition(".")[0] for k in range(len(trunk.blocks))]
        self._modules = [*trunk.blocks, *(trunk.trunk.get_submodule(path) for path in paths)]
        self._known: dict[int, dict[int, tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    def of(self, length: int, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that a block or its attention is called with."""
        if length not in self._known:
            seen: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

            def note(called: nn.Module, args: Any, more: Any) -> None:
                seen[id(called)] = (args, dict(more))

            ids = torch.tensor([[(11 + 7 * i) % self._trunk.vocabulary for i in range(length)]])
            with ExitStack() as stack, torch.no_grad():
                for one in self._modules:
                    stack.callback(one.register_forward_pre_hook(note, with_kwargs=True).remove)
                self._trunk.run(ids.to(self._trunk.device), torch.ones_like(ids).to(self._trunk.device))
            self._known[length] = seen
        return self._known[length][id(module)]


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block, a module computes `forward` instead of its own."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.__dict__["forward"] = own


@contextmanager
def kept_outputs(module: nn.Module, *, whole: bool = False) -> Iterator[list[Any]]:
    """Within the block, outputs of a module are noted in the list: whole, or their states."""
    seen: list[Any] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output if whole else first_tensor(output))

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
