"""Each figure and how it is run: short for continuous integration, and in full."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.reliability.tally import Tally


@dataclass(frozen=True)
class Figure:
    """How one figure is run: a function of a folder and these counts, in `tests.reliability`.

    Attributes:
        function: `module.function`, imported only when it runs: some figures fork, and do so before threads start.
        full: all counts.
        short: those of some seconds; None: it is run only in full.
    """

    function: str
    full: Mapping[str, Any]
    short: Mapping[str, Any] | None = None


FIGURES: dict[str, Figure] = {
    "F1": Figure("kills.random_kills", {"kills": 300, "naive_kills": 40}, {"kills": 12, "naive_kills": 3}),
    "F2": Figure(
        "crash_states.crash_points",
        {"n_shards": 12, "every": 1, "naive_every": 1},
        {"n_shards": 3, "every": 1, "naive_every": 3},
    ),
    "F3": Figure("crash_states.power_loss", {"states": 1000, "naive_states": 200}, {"states": 100, "naive_states": 10}),
    "F4": Figure(
        "disk_errors.disk_errors",
        {"every": 1, "n_shards": 4, "naive_every": 1},
        {"every": 13, "n_shards": 2, "naive_every": 5},
    ),
    "F5": Figure(
        "damage.damage",
        {"n_flips": 2000, "n_cuts": 500, "n_swaps": 200, "n_leases": 1000, "naive": 200},
        {"n_flips": 300, "n_cuts": 80, "n_swaps": 60, "n_leases": 80, "naive": 50},
    ),
    "F6": Figure("spoiled_files.spoiled_files", {"each": 400}, {"each": 25}),
    "F7": Figure(
        "commands.by_tests",
        {
            "figure": "F7",
            "reach": "hostile HDF5 is refused, and a good shard audited in 10 ms",
            "files": ["tests/states/test_audit.py", "tests/states/test_importing.py"],
        },
    ),
    "F8": Figure(
        "commands.by_tests",
        {
            "figure": "F8",
            "reach": "the same result, workers and driver killed, by each executor",
            "files": ["tests/executors/test_executors.py"],
        },
    ),
    "F9": Figure("racing.races", {"rounds": 50}, {"rounds": 3}),
    "F10": Figure("commands.store_speed", {"rows": 40_000, "pairs": 3}),
    "F11": Figure("commands.start_time", {"count": 5}),
    "F12": Figure("store_states.store_states", {"examples": 400}, {"examples": 12}),
    "F13": Figure(
        "machine_faults.machine_faults",
        {},
        {"names": ("store info", "report", "store export"), "fresh": False, "hang_seconds": 3.0},
    ),
}


def run(name: str, *, short: bool, base: Path | None = None) -> Tally:
    """Run one figure in a folder that is deleted afterwards."""
    figure = FIGURES[name]
    counts = figure.short if short else figure.full
    if counts is None:
        return Tally(name, "", unrun="only in full")
    module, _, function = figure.function.partition(".")
    folder = Path(tempfile.mkdtemp(prefix="reliability-", dir=base))
    try:
        found: Tally = getattr(import_module(f"tests.reliability.{module}"), function)(folder, **counts)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
