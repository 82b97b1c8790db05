"""Measures what the words on edges leave open: doubles of them outside the circuit, and edges that cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from probing.circuits.graph import Mask
from probing.circuits.judging import PartVerdict, listed, written
from probing.circuits.measuring import Unit
from probing.circuits.searching import Search
from probing.results.circuit import MATERIAL

LITTLE = 0.1  # share of the largest of several effects that is left where they cancel
_MOST_SETS = 20


def material_of(verdicts: Mapping[Unit, PartVerdict]) -> dict[Unit, float]:
    """Return the material edges (or nodes) of a circuit with their removals from it."""
    return {unit: one.removal.value for unit, one in verdicts.items() if one.word == MATERIAL}


def doubles(search: Search, material: Mapping[Unit, float]) -> tuple[dict[str, float], list[str]]:
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
    return known, [f"{listed(each, '; ')}: something outside the circuit does the same, or cancels it."]


def cancelling(search: Search, chosen: Mask, material: Mapping[Unit, float]) -> list[str]:
    """Return a doubt for each set of material edges into one reader (or of material nodes) of both signs without which,
    taken together, the circuit's metric changes by less than δ on the test pairs, or than a tenth of the largest.
    """
    sets = _opposed(material, search.options.least)
    if not sets:
        return []
    masks = []
    for members in sets:
        less = chosen
        for unit in members:
            less = search.less(less, unit)
        masks.append(less)
    values = search.test.changed(chosen, [*masks, chosen])
    shares = (values[-1] - values[:-1]).sum(1) / search.test.scale.total
    return [
        _cancel_words(search, members, less, share, material)
        for members, less, share in zip(sets, masks, shares.tolist(), strict=True)
        if abs(share) < max(search.options.least, LITTLE * max(abs(material[unit]) for unit in members))
    ]


def _cancel_words(
    search: Search, members: Sequence[Unit], less: Mask, share: float, material: Mapping[Unit, float]
) -> str:
    signed = [f"{search.unit_name(unit)} ({written(material[unit])})" for unit in members]
    whole, count = search.graph.on_paths(less), "both" if len(members) == 2 else "all"
    others = [unit for unit in material if unit not in members]
    off = [unit for unit in others if not (whole[unit].any() if isinstance(unit, int) else whole[unit])]
    verb = "leads" if len(off) == 1 else "lead"
    also = f"; {listed([search.unit_name(unit) for unit in off])} then {verb} nowhere" if off else ""
    return (
        f"{listed(signed)} cancel: without {count} of them, the circuit's metric changes by {written(abs(share))} "
        f"only{also}."
    )


def _opposed(material: Mapping[Unit, float], least: float) -> list[list[Unit]]:
    """Return sets of edges into one reader (or of nodes) of both signs whose effects add up to little: first pairs,
    those nearest to 0 first; then, of the rest, one with those that bring the sum nearest to 0 one after another. No
    edge is in two sets.
    """
    by_reader: dict[int | None, list[Unit]] = {}
    for unit in sorted(material, key=lambda unit: -abs(material[unit])):
        by_reader.setdefault(None if isinstance(unit, int) else unit[1], []).append(unit)
    found = list[list[Unit]]()
    for left in by_reader.values():
        pairs = [[a, b] for a, b in combinations(left, 2) if material[a] * material[b] < 0]
        pairs.sort(key=lambda pair: abs(sum(material[unit] for unit in pair)))
        used = set[Unit]()
        for members in pairs:
            if used.isdisjoint(members) and _add_up_to_little(members, material, 2 * least):
                found.append(members)
                used |= set(members)
        for largest in left:
            members = _summing(largest, [unit for unit in left if unit not in used], material)
            if largest not in used and len(members) > 1 and _add_up_to_little(members, material, 2 * least):
                found.append(members)
                used |= set(members)
    return found[:_MOST_SETS]


def _add_up_to_little(members: Sequence[Unit], material: Mapping[Unit, float], least: float) -> bool:
    sizes = [material[unit] for unit in members]
    return abs(sum(sizes)) < max(least, LITTLE * max(map(abs, sizes)))


def _summing(largest: Unit, others: Sequence[Unit], material: Mapping[Unit, float]) -> list[Unit]:
    """Return an edge with smaller ones, each of which brings the sum nearest to 0, as long as it comes nearer."""
    members, total = [largest], material[largest]
    rest = [unit for unit in others if unit != largest and abs(material[unit]) <= abs(total)]
    while rest:
        nearest = min(rest, key=lambda unit: abs(total + material[unit]))
        if abs(total + material[nearest]) >= abs(total):
            break
        total += material[nearest]
        members.append(nearest)
        rest.remove(nearest)
    return members
