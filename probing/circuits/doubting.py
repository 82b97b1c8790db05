"""Measures what the words on edges leave open: doubles of them outside the circuit, edges that cancel, and means that
no single pair has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from probing.circuits.graph import Mask
from probing.circuits.judging import PartVerdict, listed, written
from probing.circuits.measuring import Floats, Unit
from probing.circuits.searching import Search
from probing.results.circuit import MATERIAL, SUFFICIENT

LITTLE = 0.1  # share of the largest of several effects that is left where they cancel
_MOST_SETS = 20
_MOST_OPPOSED = 12  # edges into one reader whose sets are all looked at, the largest


def material_of(verdicts: Mapping[Unit, PartVerdict]) -> dict[Unit, float]:
    """Return the material edges (or nodes) of a circuit with their removals from it."""
    return {unit: one.removal.value for unit, one in verdicts.items() if one.word == MATERIAL}


def doubles(search: Search, chosen: Mask, material: Mapping[Unit, float]) -> tuple[dict[str, float], list[str]]:
    """Return by how much the metric of the whole model falls without each material edge (or node), on the test pairs,
    and a doubt that names those without which it changes by less than δ, and by less than half of what the circuit's
    metric does.
    """
    if not material:
        return {}, []
    falls = search.test.removals(list(material), folder=search.folder, title="removals from the whole model")
    shares = dict(zip(material, (falls.sum(1) / search.test.scale.total).tolist(), strict=True))
    least = search.options.least
    doubled = [unit for unit, size in material.items() if abs(shares[unit]) < min(least, abs(size) / 2)]
    known = {search.unit_name(unit): share for unit, share in shares.items()}
    if not doubled:
        return known, []
    each = [
        f"{search.unit_name(unit)} is material in the circuit ({written(material[unit])}), but the whole model loses "
        f"only {written(shares[unit])} without it"
        for unit in doubled
    ]
    causes = "something outside the circuit does the same, or cancels it"
    if search.options.by == "mean" and any(_leaves_idle(search, chosen, unit) for unit in doubled):
        causes += (
            "; or neither: a part of the circuit that nothing reaches writes its mean, while in the whole model it "
            "computes from the mean that it reads, and the two differ where it is not linear"
        )
    return known, [f"{listed(each, '; ')}: {causes}."]


def _leaves_idle(search: Search, chosen: Mask, unit: Unit) -> bool:
    """Return whether a part of a circuit is reached by the input with a unit, and not without it."""
    before, after = (search.graph.reach(mask)[0] for mask in (chosen, search.less(chosen, unit)))
    return bool((before & ~after).any())


def cancelling(search: Search, chosen: Mask, material: Mapping[Unit, float], falls: Mapping[Unit, Floats]) -> list[str]:
    """Return a doubt for each set of material edges into one reader (or of material nodes) of both signs without which,
    taken together, the circuit's metric of single test pairs changes by less than δ, or than a tenth of the largest, on
    average. `falls` are those of the circuit's metric without each, `(n,)`.
    """
    scale, least = search.test.scale, search.options.least
    material_falls = {unit: falls[unit] / scale.total for unit in material}
    sets = _opposed(material_falls, least)
    if not sets:
        return []
    masks = []
    for members in sets:
        less = chosen
        for unit in members:
            less = search.less(less, unit)
        masks.append(less)
    values = search.test.changed(chosen, [*masks, chosen])
    changes = scale.spread(values[-1] - values[:-1]).tolist()
    kept = [
        (members, less, change)
        for members, less, change in zip(sets, masks, changes, strict=True)
        if change < max(least, LITTLE * max(float(np.abs(material_falls[unit]).sum()) for unit in members))
    ]
    return [
        _cancel_words(search, members, less, change, material)
        + _same_part(search, members, [other for other, _, _ in kept])
        for members, less, change in kept[:_MOST_SETS]
    ]


def _cancel_words(
    search: Search, members: Sequence[Unit], less: Mask, change: float, material: Mapping[Unit, float]
) -> str:
    signed = [f"{search.unit_name(unit)} ({written(material[unit])})" for unit in members]
    whole, count = search.graph.on_paths(less), "both" if len(members) == 2 else "all"
    others = [unit for unit in material if unit not in members]
    off = [unit for unit in others if not (whole[unit].any() if isinstance(unit, int) else whole[unit])]
    verb = "leads" if len(off) == 1 else "lead"
    also = f"; {listed([search.unit_name(unit) for unit in off])} then {verb} nowhere" if off else ""
    return (
        f"{listed(signed)} cancel: without {count} of them, the circuit's metric changes by {written(change)} only, "
        f"pair by pair{also}."
    )


def _same_part(search: Search, members: Sequence[Unit], sets: Sequence[Sequence[Unit]]) -> str:
    """Return a sentence on members of a set that are in another one, too; "" if there are none."""
    shared = [unit for unit in members if sum(unit in other for other in sets) > 1]
    if not shared:
        return ""
    names = listed([search.unit_name(unit) for unit in shared])
    return f" {names} would cancel with others as well: which of them it is with, effects do not tell."


def _opposed(falls: Mapping[Unit, Floats], least: float) -> list[list[Unit]]:
    """Return the smallest sets of edges into one reader (or of nodes) with means of both signs whose falls `(n,)` add
    up to little pair by pair: less than 2 δ, or than a tenth of the largest, in the sum of absolute values. Of sets
    with a part in common, the one nearest to 0 is first; those that are further from it by δ or more are left out.
    """
    by_reader: dict[int | None, list[Unit]] = {}
    for unit in sorted(falls, key=lambda unit: -abs(falls[unit].sum())):
        by_reader.setdefault(None if isinstance(unit, int) else unit[1], []).append(unit)
    found = list[tuple[float, list[Unit]]]()
    for units in by_reader.values():
        mine = list[tuple[float, list[Unit]]]()
        looked_at = units[:_MOST_OPPOSED]
        for size in range(2, len(looked_at) + 1):
            for members in combinations(looked_at, size):
                if len({falls[unit].sum() > 0 for unit in members}) < 2:
                    continue
                if any(set(smaller) <= set(members) for _, smaller in mine):
                    continue
                left = float(np.abs(sum(falls[unit] for unit in members)).sum())
                if left < max(2 * least, LITTLE * max(float(np.abs(falls[unit]).sum()) for unit in members)):
                    mine.append((left, list(members)))
        mine.sort(key=lambda one: one[0])
        found += [
            (left, members)
            for k, (left, members) in enumerate(mine)
            if all(left < other + least or set(members).isdisjoint(better) for other, better in mine[:k])
        ]
    return [members for _, members in sorted(found, key=lambda one: one[0])]


def only_on_average(search: Search, judged: Floats, word: str) -> list[str]:
    """Return a doubt if a circuit that is sufficient keeps the metric `(n,)` of single test pairs by no means: if it
    differs from the model's by more than ε of the mean fall, on average. It names parts whose effects have both signs.
    """
    scale = search.test.scale
    (spread,) = scale.spread(judged - scale.full).tolist()
    if word != SUFFICIENT or spread <= search.options.epsilon:
        return []
    each = [f"{search.unit_name(unit)} ({written(size)})" for unit, size in search.both_signs.items()]
    left = (
        f" Not chosen, because their effects have both signs and a mean below δ (in brackets their mean size on "
        f"discovery): {listed(each)}."
        if each
        else ""
    )
    return [
        f"The circuit is sufficient on average only: on single test pairs its metric differs from the model's by "
        f"{written(spread)} of the mean fall, on average.{left}"
    ]
