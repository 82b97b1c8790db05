"""Checks the types and ranges of options, before work begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from probing.errors import BadParameter


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an option that is a whole number.

    Raises:
        BadParameter: it is none, or out of range.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    needed = f"a whole number, {least} or more" if most is None else f"a whole number from {least} to {most:,}"
    if not is_whole:
        raise BadParameter(f"{name} is no whole number", needed=needed, found=repr(value)[:100])
    if value < least or (most is not None and value > most):
        what = "small" if value < least else "large"
        raise BadParameter(f"{name} is too {what}", needed=needed, found=str(value)[:100])
    return int(value)


def is_real(value: Any) -> bool:
    """Return whether a value is a finite real number."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_number and abs(value) < float("inf")


def check_device(name: Any) -> None:
    """Refuse a device that PyTorch does not have here.

    Raises:
        BadParameter: there is no such device.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise BadParameter(
            "there is no such device here", needed="a device of PyTorch, such as cpu", found=f"{name!r}: {error}"[:200]
        ) from None
