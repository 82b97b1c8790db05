"""Reads inputs one by one, without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Read = Callable[[Tensor, Tensor, Sequence[str]], dict[str, Tensor]]


def read_alone(read: Read, ids: Tensor, mask: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
    """Return the states `(B, T, D)` at the sites, of inputs that `read` is given one at a time; at padding they are
    0.
    """
    found: dict[str, Tensor] = {}
    for row, real in enumerate(mask.bool()):
        alone = read(ids[row, real][None], mask[row, real][None], sites)
        for site, state in alone.items():
            if site not in found:
                found[site] = state.new_zeros((*ids.shape, state.shape[-1]))
            found[site][row, real] = state[0]
    return found
