"""Describes evidence in flat records and sentences: its norm, its effect, and whether its verdict establishes it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from probing.errors import BadParameter
from probing.use.directions.record import Evidence, Header
from probing.verdicts.verdict import Word


def record_of(evidence: Evidence) -> dict[str, Any]:
    """Return a flat record that describes the evidence, ready for JSON.

    `dimensions` is the width D of the states. `norm` is the length of the shift of class means at dose 1 in the unit of
    the states: between two classes (of several, the two farthest apart), or per unit of a real value; None for erasers
    and probes. `rank` is the number of directions that an eraser removes. `effect` is in SDs of the clean output, with
    its 95 % interval `effect_low` to `effect_high`; None if it was not measured.
    """
    header, told = evidence.header, evidence.header.verdict
    effect = told.effect or (None, None, None)
    return {
        "model": header.model,
        "revision": header.revision,
        "weights": header.identity,
        "task": header.task,
        "labels": list(header.labels),
        "behaviour": header.behaviour,
        "site": header.site,
        "position": header.position,
        "kind": header.kind,
        "dimensions": evidence.width,
        "rank": int(evidence.arrays["left"].shape[1]) if header.kind == "leace" else None,
        "norm": norm(evidence),
        "dose": header.dose,
        "effect": effect[0],
        "effect_low": effect[1],
        "effect_high": effect[2],
        "verdict": told.word,
        "flags": list(told.flags),
        "is_established": not caveat(header),
        "rows": header.rows,
    }


def norm(evidence: Evidence) -> float | None:
    """Return the length of the shift between class means (see `record_of`); None if there is none."""
    if evidence.header.kind != "class_mean":
        return None
    pairs = list(combinations(range(len(evidence.header.labels)), 2)) or [(0, 1)]
    lengths = []
    for start, goal in pairs:
        try:
            lengths.append(float(np.linalg.norm(evidence.direction(start=start, goal=goal))))
        except BadParameter:  # two classes that no stratum has both of
            continue
    return max(lengths, default=None)


def caveat(header: Header, place: str = "", behaviour: str = "") -> str:
    """Return a sentence that says why the verdict does not establish the direction, or does not at this place and for
    this behaviour ("": those of the verdict); "" if it does.
    """
    word = header.verdict.word
    elsewhere = [
        found for found, own in ((place, header.place), (behaviour, header.behaviour)) if found not in ("", own)
    ]
    if elsewhere and word == Word.USED_SUBSPACE:
        return (
            f"the verdict is about {header.task} at {header.place} in {header.behaviour or 'its own behaviour'}: it "
            f"says nothing of {' and '.join(elsewhere)}"
        )
    if word == Word.USED_SUBSPACE:
        return ""
    what = f"{header.task} at {header.place}"
    if word == Word.USED_SITE:
        return (
            f"{what} is {word}: that the model uses the site is established, that it uses this direction is not "
            "established"
        )
    return f"{what} is {word}: that the model uses this direction is not established"
