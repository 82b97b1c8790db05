"""Holds estimates from gradients (screens) against exact effects, and names what they do not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from probing.circuits.judging import listed, written
from probing.circuits.measuring import ALIKE

Floats = NDArray[np.float64]


def agreement(screen: str, names: Sequence[str], estimated: Floats, exact: Floats, least: float) -> dict[str, Any]:
    """Return the rank correlation of estimates `(K,)` of one screen with exact effects, the part on which they differ
    most, and all parts with an exact effect of δ or more whose estimate is below δ and below half of it.
    """
    known, true = (np.where(np.abs(one) < ALIKE, 0.0, one) for one in (estimated, exact))  # rounding has no rank
    varies = np.ptp(known) > 0 and np.ptp(true) > 0
    worst = int(np.argmax(np.abs(estimated - exact)))
    is_unseen = (np.abs(exact) >= least) & (np.abs(estimated) < np.minimum(least, np.abs(exact) / 2))
    unseen = sorted(np.flatnonzero(is_unseen).tolist(), key=lambda k: -abs(exact[k]))

    def both(place: int) -> dict[str, Any]:
        return {"name": names[place], "estimated": float(estimated[place]), "exact": float(exact[place])}

    return {
        f"rank_correlation_{screen}": float(spearmanr(known, true)[0]) if varies else None,
        f"largest_error_{screen}": both(worst),
        f"unseen_{screen}": [both(place) for place in unseen],
    }


def left_out(names: Sequence[str], shares: Floats, least: float, pairs: int) -> dict[str, Any]:
    """Return which nodes that are not among the best have an exact effect of δ or more, the largest first, and the
    number of pairs that it was measured on.
    """
    order = sorted(range(len(names)), key=lambda k: -abs(shares[k]))
    large = {names[k]: float(shares[k]) for k in order if abs(shares[k]) >= least}
    return {"nodes_left_out": large, "nodes_left_out_on": pairs}


def screen_doubts(method: str, notes: Mapping[str, Any]) -> list[str]:
    """Return doubts on what was chosen by estimates: nodes that were left out, and edges (or nodes) that are not seen
    by the screen that ranks them.
    """
    found, nodes = [], notes.get("nodes_left_out")
    if nodes:
        each = listed([f"{name} ({written(share)})" for name, share in nodes.items()])
        found.append(
            f"Not among the best nodes by EAP, although the whole model's metric changes by δ or more without one of "
            f"them (exact, on {notes['nodes_left_out_on']} pairs of discovery): {each}. EAP gives about 0 to what acts "
            "through a norm or a saturation: give more nodes, or all."
        )
    unseen = notes.get(f"unseen_{method}")
    if unseen:
        each = listed([f"{one['name']} ({written(one['exact'])}, not {written(one['estimated'])})" for one in unseen])
        found.append(
            f"The ranking does not see {len(unseen)} of {notes['rank_correlation_on']} that were also measured: their "
            f"effects are of δ or more, and their estimates below: {each}. What acts through a norm or a saturation "
            "has an estimate of about 0: rank by exact effects."
        )
    return found
