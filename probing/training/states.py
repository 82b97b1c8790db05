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

States = Mapping[str, Any]  # by split: arrays (N, D), or Pieces
Read = Callable[[str, NDArray[np.int64]], NDArray[np.float32]]


def unit_states(plan: Plan, site: str, probe: Probe, states: States) -> States:
    """What this probe reads of a site, or instead of one: `states`, read already, or all pieces of each row."""
    if probe.reads == "pieces":
        return _checked(plan, site, _pieces(plan, site))
    return states or stateless(plan, probe)


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
    return _checked(plan, site, {split: read(site, labels.row[labels.rows(split)]) for split in SPLITS})


def _pieces(plan: Plan, site: str) -> States:
    """All pieces of the rows at one site, by split; `make_plan` has seen to it that the store has them."""
    labels = plan.labels
    store: Any = plan.store
    return {split: store.pieces(site, labels.row[labels.rows(split)]) for split in SPLITS}


def _checked(plan: Plan, site: str, states: States) -> States:
    labels = plan.labels
    for split, X in states.items():
        bad = np.flatnonzero(~np.isfinite(np.asarray(X).sum(axis=1, dtype=np.float64)))
        if len(bad):
            rows = labels.row[labels.rows(split)][bad[:5]].tolist()
            raise NonFiniteStates(
                "states that are not finite", needed="finite states", found=f"{len(bad)} rows with NaN or infinity",
                where=f"site {site}, {split}, rows {', '.join(map(str, rows))}",
                next_step="leave the site out, or extract again in float32",
            )  # fmt: skip
    return states


def stateless(plan: Plan, probe: Probe) -> States:
    """What a baseline reads, by split, `(N, 1)`: its key's codes or strings, or nothing (zeros)."""
    labels = plan.labels
    read: NDArray[Any] = np.zeros(len(labels))
    if probe.reads in labels.keys:
        codes = labels.keys[probe.reads]
        names = labels.key_names[probe.reads]
        read = np.array(names, dtype=object)[codes] if probe.reads_names else codes.astype(np.float64)
    return {split: read[labels.rows(split)][:, None] for split in SPLITS}
