"""Saved probes of every kind, written once and kept for ever: what they were fitted on, and how they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing import registry
from probing.contracts.probe import Probe

FOLDER = Path(__file__).parent
SETTINGS: dict[str, dict[str, Any]] = {"mlp": {"hidden": 4}, "sparse": {"k": 2}, "k_nearest": {"k": 3}}
# They read pairs, trees or several pieces, or need what the rows of a corpus tell.
OTHERS = ("attention_pooling", "softmax_pooling", "bilinear", "structural", "sklearn")
ROLES = {"MEMBER": "", "REGRESSION_MEMBER": ".regression"}


def states() -> NDArray[np.float32]:
    """Forty rows of six coordinates, by a formula."""
    rows, columns = np.meshgrid(np.arange(40), np.arange(6), indexing="ij")
    return np.sin(1.7 * rows + 0.9 * columns * columns + 1).astype(np.float32)


def kinds() -> dict[str, type[Probe]]:
    """The classes of registered probes that read states row by row, by the names of their files."""
    found = {}
    for name in registry.names("probes"):
        module = registry.get("probes", name)
        for role, ending in ROLES.items():
            kind = getattr(module, role, None)
            if name not in OTHERS and kind is not None and kind.input == "states":
                found[name + ending] = kind
    return found


def fitted(kind: type[Probe]) -> Probe:
    """The probe fitted on the rows: the signs of two coordinates by name, or their sum."""
    x = states()
    y: Any = x[:, 0] + 0.5 * x[:, 3]
    if "classes" in kind.kinds:
        y = np.where(x[:, 0] > 0.2, "high", np.where(x[:, 3] > 0, "middle", "low"))
    return kind(**SETTINGS.get(kind.__module__.rpartition(".")[2], {})).fit(x, y)


def predictions(probe: Probe) -> list[Any]:
    """What it says of the same rows: labels or numbers."""
    found: list[Any] = probe.predict(states()).tolist()
    return found
