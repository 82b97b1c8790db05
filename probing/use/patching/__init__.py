"""Puts states of one prompt into the run of another (patching), and takes components out of models (ablation); makes
tables and heat maps, no verdicts.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Return what lies in `patching.py`, which was this module in version 0.1."""
    found = vars(import_module("probing.use.patching.patching"))
    if name.startswith("_") or name not in found:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found[name]
