"""Measures what the words on edges leave open: doubles of them outside the circuit, and edges that cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probing.circuits.graph import Mask
from probing.circuits.judging import PartVerdict
from probing.circuits.measuring import Unit
from probing.circuits.searching import Search
from probing.results.circuit import MATERIAL

_MOST_NAMED, _MOST_SETS = 5, 20


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
    taken together, the circuit's metric changes by less than δ on the test pairs.
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
    found = []
    for members, less, share in zip(sets, masks, shares.tolist(), strict=True):
        if abs(share) < search.options.least:
            signed = [f"{search.unit_name(unit)} ({written(material[unit])})" for unit in members]
            whole = search.graph.on_paths(less)
            idle = [
                search.unit_name(unit)
                for unit in material
                if unit not in members and not (whole[unit].any() if isinstance(unit, int) else whole[unit])
            ]
            also = f"; without them, {listed(idle)} lead nowhere" if len(idle) > 1 else ""
            also = f"; without them, {idle[0]} leads nowhere" if len(idle) == 1 else also
            found.append(
                f"{listed(signed)} cancel: without all {len(members)} of them, the circuit's metric changes by "
                f"{written(abs(share))} only{also}."
            )
    return found


def _opposed(material: Mapping[Unit, float], least: float) -> list[list[Unit]]:
    """Return sets of edges into one reader (or of nodes) of both signs whose effects add up to little: to the largest
    one, the one is added that brings the sum nearest to 0, as long as it comes nearer; no edge is in two sets.
    """
    by_reader: dict[int | None, list[Unit]] = {}
    for unit in sorted(material, key=lambda unit: -abs(material[unit])):
        by_reader.setdefault(None if isinstance(unit, int) else unit[1], []).append(unit)
    found = []
    for left in by_reader.values():
        while len(left) > 1:
            members = [left[0]]
            total, rest = material[left[0]], left[1:]
            while rest:
                nearest = min(rest, key=lambda unit: abs(total + material[unit]))
                if abs(total + material[nearest]) >= abs(total) or abs(total) < least:
                    break
                total += material[nearest]
                members.append(nearest)
                rest.remove(nearest)
            left = [unit for unit in left if unit not in members]
            if len(members) > 1:
                found.append(members)
    return found[:_MOST_SETS]


def written(value: float) -> str:
    """Return a share with three decimals; what rounds to 0 has no sign."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def listed(parts: Sequence[str], between: str = ", ") -> str:
    """Return the first five of some phrases, and how many more there are."""
    more = len(parts) - _MOST_NAMED
    return between.join(parts[:_MOST_NAMED]) + (f"{between}and {more} more" if more > 0 else "")
