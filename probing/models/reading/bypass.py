"""Replacements for blocks that are not run: a forward that hands its input on in the form of the block's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from probing.models.discovery.layout import Layout
from probing.models.discovery.tracing import given_state, with_first


def emptied(output: Any) -> Any:
    """Return an output without its tensors, in the form that it has; None where it is a tensor alone."""
    if isinstance(output, Mapping):
        return type(output)(**dict.fromkeys(output))
    return type(output)([None] * len(output)) if isinstance(output, tuple | list) else None


def bypass(form: Any, states: Tensor | None, layout: Layout) -> Callable[..., Any]:
    """Return a forward that gives its input, or `states`, in the form of a block's output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = given_state(args, kwargs)
        assert given is not None  # for the reader of types: a block is given states
        return with_first(form, given if states is None else layout.spread(states, given))

    return forward


def of_pieces(output: Any, mask: Tensor) -> Tensor:
    """Return the logits, or the last states of a model without a head, without those of padding."""
    found: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return found[mask.bool()] if found.shape[:2] == mask.shape else found
