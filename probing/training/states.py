"""What a probe reads: states of a site, or what a baseline reads instead, by split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts import Probe
from probing.corpus import SPLITS
from probing.errors import NonFiniteStates
from probing.training.plan import Plan

States = Mapping[str, NDArray[Any]]
Read = Callable[[str, NDArray[np.int64]], NDArray[np.float32]]


def site_states(plan: Plan, site: str, read: Read | None = None) -> States:
    """States `(N, D)` of one site by split.

    Args:
        plan: says which rows.
        site: where.
        read: gives the states of a site and rows; None: the store of the plan.

    Raises:
        NonFiniteStates: with site and the first rows.
    """
    labels, read = plan.labels, read or plan.store.read
    states = {split: read(site, labels.row[labels.rows(split)]) for split in SPLITS}
    for split, X in states.items():
        bad = np.flatnonzero(~np.isfinite(X.sum(axis=1, dtype=np.float64)))
        if len(bad):
            rows = labels.row[labels.rows(split)][bad[:5]].tolist()
            raise NonFiniteStates(
                "states that are not finite", needed="finite states", found=f"{len(bad)} rows with NaN or infinity",
                where=f"site {site}, {split}, rows {', '.join(map(str, rows))}",
                next_step="leave the site out, or extract again in float32",
            )  # fmt: skip
    return states


def stateless(plan: Plan, probe: Probe) -> States:
    """What a baseline reads, by split: its key's codes, or nothing (zeros)."""
    labels = plan.labels
    codes = np.zeros(len(labels)) if probe.reads == "states" else labels.keys[probe.reads].astype(np.float64)
    return {split: codes[labels.rows(split)][:, None] for split in SPLITS}
