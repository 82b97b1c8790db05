"""Hooks of one pass: an edit inside a block, and an output layer that runs at one piece of each row only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probing.contracts.behaviour import Behaviour, Ints
from probing.errors import BadParameter, NoBehaviour
from probing.models.discovery.tracing import first_tensor, given_state, with_first, with_state
from probing.models.language_model import LanguageModel
from probing.models.site import Site, select_sites

STREAMS = ("resid", "attn_out", "mlp_out", "heads")


def editable_sites(patterns: str | Sequence[str], model: LanguageModel) -> tuple[str, ...]:
    """Return the sites that can be edited, in the order of depth.

    Raises:
        UnknownSite: a pattern that matches nothing.
        BadParameter: another kind of site.
    """
    found = select_sites(patterns, model.sites)
    for site in found:
        if Site.parse(site).stream not in STREAMS:
            raise BadParameter(
                "this site is not edited",
                needed=", ".join(f"{name}.l" for name in STREAMS),
                found=site,
                next_step="resid.0 is what enters the first block",
            )
    return tuple(sorted(found, key=lambda site: (Site.parse(site).layer or 0, STREAMS.index(Site.parse(site).stream))))


def depth(model: LanguageModel) -> int:
    """Return the number of blocks, L."""
    return max(Site.parse(site).layer or 0 for site in model.sites if Site.parse(site).stream == "resid")


def output_layer(model: LanguageModel, behaviour: Behaviour) -> nn.Module | None:
    """Return the layer that makes logits of states; None where it need not be known.

    Raises:
        NoBehaviour: the behaviour needs a head that the model lacks.
    """
    network = model.suffix.model
    if behaviour.source == "states":
        return None
    is_language = model.suffix.head is not None
    if is_language != (behaviour.source == "logits"):
        raise NoBehaviour(
            "this model does not have the behaviour",
            where=model.name,
            needed="a language-model head" if behaviour.source == "logits" else "a head over whole texts",
            found=type(network).__name__,
            next_step="load it with another head, or use the behaviour `readout`",
        )
    get: Any = getattr(network, "get_output_embeddings", None)
    found = get() if is_language and get is not None else None
    return found if isinstance(found, nn.Module) else None


@contextmanager
def only(head: nn.Module | None, columns: Ints) -> Iterator[None]:
    """Within the block the output layer runs at one column of each row: logits `(B, 1, V)`."""
    if head is None:
        yield
        return
    rows = torch.arange(len(columns))

    def choose(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        given = args[0]
        if given.ndim != 3 or len(given) != len(columns):
            return None
        return (given[rows, torch.from_numpy(columns)][:, None], *args[1:])

    handle = head.register_forward_pre_hook(choose, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changing(
    model: LanguageModel, site: str, change: Callable[[Tensor], Tensor], shape: tuple[int, int] | None = None
) -> Iterator[None]:
    """Within the block the states at a site become `change(states)`, of the same shape, `(B, T, D)`.

    Args:
        model: the model.
        site: where.
        change: what is done.
        shape: (B, T); None: as the states lie in the model.

    Raises:
        UnsupportedModel: the site was not met exactly once.
    """
    trunk = model.suffix.trunk
    module, fired = trunk.trunk.get_submodule(trunk.modules[site]), 0

    layout = trunk.layout_of(site)

    def changed(state: Tensor) -> Tensor:
        nonlocal fired
        fired += 1
        pieces = state if layout.is_plain or shape is None else layout.aligned(state, shape)
        assert pieces is not None  # for the reader of types: the site was read so
        return change(pieces) if pieces is state else layout.spread(change(pieces), state)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        state = given_state(args, kwargs)
        assert state is not None  # for the reader of types: the site was read so
        return with_state(args, kwargs, changed(state))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        state = first_tensor(output)
        assert isinstance(state, Tensor)  # for the reader of types: the site was read so
        return with_first(output, changed(state))

    handle = (
        module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
        if site in trunk.reads_input
        else module.register_forward_hook(after, prepend=True)
    )
    try:
        yield
    finally:
        handle.remove()
    if fired != 1:
        raise trunk.unsupported(f"site {site} was met {fired} times", "once in a forward pass")


@contextmanager
def adding(model: LanguageModel, site: str, delta: Tensor) -> Iterator[None]:
    """Within the block `delta` `(B, T, D)` is added at a site; gradients flow into it.

    Raises:
        UnsupportedModel: the site was not met exactly once.
    """
    shape = (delta.shape[0], delta.shape[1])
    with changing(model, site, lambda states: states + delta.reshape(states.shape), shape):
        yield
