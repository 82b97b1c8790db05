"""Published settings by name: `mlp:preset=hewitt-liang-default` is the recipe with these parameters filled in.

References:
    Hewitt & Liang 2019, "Designing and Interpreting Probes with Control Tasks", §4 (default settings; dropout), and
    the settings they find most selective for part of speech ("designed").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from probing.errors import BadParameter, unknown_name

_TRAINING = {"learning_rate": 1e-3, "learning_rate_factor": 0.5, "weight_decay": 0.0, "max_epochs": 40, "patience": 4}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "hewitt-liang-default": {
        "linear": {"rank": 1000},
        "mlp": {"hidden": 1000, "dropout": 0.0} | _TRAINING,
    },
    "hewitt-liang-designed": {
        "linear": {"rank": 10},
        "mlp": {"hidden": 45, "dropout": 0.0} | _TRAINING,
    },
    "dropout-0.4": {
        "mlp": {"hidden": 1000, "dropout": 0.4} | _TRAINING,
    },
}


def has_preset(probe: str) -> bool:
    """Return whether any preset is for the probe registered under this name."""
    return any(probe in probes for probes in PRESETS.values())


def preset(name: str, probe: str, parameters: Collection[str]) -> dict[str, Any]:
    """Return the parameters that a preset gives a probe.

    Args:
        name: of the preset.
        probe: registered name of the probe.
        parameters: those the probe has.

    Raises:
        UnknownName: no such preset for this probe, with the nearest.
        BadParameter: the probe has not the parameters it needs.
    """
    known = [one for one, probes in PRESETS.items() if probe in probes]
    if name not in known:
        raise unknown_name(f"preset of {probe}", name, known, where=f"{probe}:preset")
    given = dict(PRESETS[name][probe])
    missing = sorted(set(given) - set(parameters))
    if missing:
        raise BadParameter(
            f"{probe} cannot take the preset {name}",
            needed=f"its parameters {', '.join(given)}",
            found=f"no parameter {', '.join(missing)}",
            where=f"{probe}:preset",
        )
    return given
