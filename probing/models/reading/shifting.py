"""Adds a vector to the states at one site of a running model, in every pass within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from probing.errors import BadParameter
from probing.models.discovery.tracing import first_tensor, given_state, with_first, with_state
from probing.models.reading.hooked import HookedModule


@contextmanager
def shifted(trunk: HookedModule, site: str, shift: Tensor, *, changes: bool = True) -> Iterator[None]:
    """Within the block, add `shift` `(D,)` to the states of all pieces at a site, before any other hook or module reads
    them; the hook is removed afterwards, also after an error.

    Args:
        trunk: the model.
        site: name of the site.
        shift: the vector; it is converted to the device and data type of the states.
        changes: whether the vector is added; False for a zero vector, so that states keep every bit.

    Raises:
        UnknownSite: the model has no such site.
        BadParameter: states at the site have another width.
    """
    trunk.check_sites([site])
    module = trunk.trunk.get_submodule(trunk.modules[site])

    def moved(state: object) -> Tensor | None:
        if not changes or not isinstance(state, Tensor):
            return None
        if state.shape[-1] != len(shift):
            raise BadParameter(
                "a vector of another width", needed=f"{state.shape[-1]}", found=f"{len(shift)}", where=f"site {site}"
            )
        return state + shift.to(state.device, state.dtype)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = moved(given_state(args, kwargs))
        return None if state is None else with_state(args, kwargs, state)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        state = moved(first_tensor(output))
        return None if state is None else with_first(output, state)

    if site in trunk.reads_input:
        handle = module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
    else:
        handle = module.register_forward_hook(after, prepend=True)
    try:
        yield
    finally:
        handle.remove()
