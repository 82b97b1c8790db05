"""Measures what the words on edges leave open: doubles of them outside the circuit, and edges that cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probing.circuits.judging import PartVerdict
from probing.circuits.measuring import Unit
from probing.circuits.searching import Search
from probing.results.circuit import MATERIAL

_MOST_NAMED = 5


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


def written(value: float) -> str:
    """Return a share with three decimals; what rounds to 0 has no sign."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def listed(parts: Sequence[str], between: str = ", ") -> str:
    """Return the first five of some phrases, and how many more there are."""
    more = len(parts) - _MOST_NAMED
    return between.join(parts[:_MOST_NAMED]) + (f"{between}and {more} more" if more > 0 else "")
