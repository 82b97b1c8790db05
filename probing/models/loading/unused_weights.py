"""Weights in a model's files that its blocks have no place for: of blocks left out, or of adapters."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection

from torch import nn

from probing.errors import UnusedWeights

_NO_WEIGHTS = ("inv_freq", "masked_bias", "position_ids")  # buffers that older versions saved
_NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")


def warn_of_unused(model: nn.Module, keys: Collection[str], name: str) -> None:
    """Warn of weights inside lists of blocks that were not read: what is measured is then another model.

    Heads and poolers of another kind than was asked for are no blocks, and are not mentioned.
    """
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    unused = sorted(key for key in keys if not key.endswith(_NO_WEIGHTS) and _is_of_blocks(key, lists))
    if unused:
        more = f", and {len(unused) - 3} more" if len(unused) > 3 else ""
        warnings.warn(
            f"{name}: the files hold weights of blocks that the model does not use: {', '.join(unused[:3])}{more}. "
            "Does config.json name fewer layers than were trained, or is an adapter not merged?",
            UnusedWeights,
            stacklevel=2,
        )


def _is_of_blocks(key: str, lists: Collection[str]) -> bool:
    """Return whether a key lies in one of the lists; files may leave out, or have, what stands before the list's own
    name.
    """
    heads = [key[: match.start(1)].rstrip(".") for match in _NUMBERED.finditer(key)]
    return any(
        path == head or path.endswith(f".{head}") or head.endswith(f".{path}")
        for head in heads
        if head
        for path in lists
        if path
    )
