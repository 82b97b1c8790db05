"""Maps the layer numbers in files of other tools to sites."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from probing.errors import BadParameter
from probing.models.site import Site

LAYER = "layer"
_MEANINGS = {
    "hf": "hf:L (transformers' hidden_states of a model of L blocks: layer k enters block k, and L is after the final "
    "norm)",
    "vllm": "vllm or vllm:8,16,24 (layer k enters block k, and the last is before the final norm)",
    "blocks": "blocks (layer k leaves block k)",
}


def sites_of(columns: Sequence[str], layers: str | None, *, must_say: bool, where: str) -> dict[str, str]:
    """Return the name of the column for each site; a column named by a number is a layer, which `layers` gives a
    meaning.

    Args:
        columns: names of the arrays of states.
        layers: `layer` or another stream; `hf:L`, `vllm`, `vllm:IDS` or `blocks`; None: not given.
        must_say: whether `layers` must be given because the format does not define its layers.
        where: the source, for messages.

    Raises:
        BadParameter: `layers` is missing where it is needed, or does not fit the layers.
        UnknownSite: a name is not a site name.
    """
    numbered = [column for column in columns if column.isdigit()]
    if numbered and not layers and must_say:
        raise BadParameter(
            "what are the layers of this source? It does not say whether layer k is read before or after block k, nor "
            "whether the last is read before or after the final norm",
            needed="--layers (Python: layers=) as one of: " + "; ".join(_MEANINGS.values()) + "; or a stream's name",
            found=f"layers {', '.join(numbered[:12])}",
            where=where,
            next_step="say how the states were made; `--layers layer` keeps numbers of unknown meaning",
        )
    named = _by_number(sorted(map(int, numbered)), layers or LAYER, where)
    found = {named[int(column)] if column.isdigit() else str(Site.parse(column)): column for column in columns}
    if len(found) < len(columns):
        raise BadParameter("two arrays of one site", needed="one array a site", found=", ".join(columns), where=where)
    return found


def missing_layers(columns: Sequence[str], layers: str | None) -> list[int]:
    """Return the numbers of the layers that a source lacks: between its lowest and highest, and for `hf:L`, which says
    how many there are, among 0 to L. Layers that follow each other at one distance above 1, such as every fourth, are
    lacking on purpose if there are three or more of them.
    """
    numbers = sorted({int(column) for column in columns if column.isdigit()})
    if not numbers:
        return []
    kind, _, last = (layers or "").partition(":")
    whole = range(int(last) + 1) if kind == "hf" else range(numbers[0], numbers[-1] + 1)
    steps = {after - before for before, after in pairwise(numbers)}
    is_regular = len(numbers) > 2 and len(steps) == 1 and steps != {1}
    return [] if is_regular else [number for number in whole if number not in numbers]


def _by_number(numbers: Sequence[int], layers: str, where: str) -> dict[int, str]:
    """Return the site of each layer by its number."""
    kind, colon, ids = layers.partition(":")
    if kind not in _MEANINGS:
        return {number: str(Site.parse(f"{layers}.{number}")) for number in numbers}
    given = ids.split(",") if colon else []
    if not all(part.strip().isdecimal() for part in given) or (kind == "hf") != (len(given) == 1 and kind != "vllm"):
        raise _unfit(kind, layers, where)
    known = [int(part) for part in given]
    if kind == "blocks":
        if known:
            raise _unfit(kind, layers, where)
        return {number: f"resid.{number + 1}" for number in numbers}
    if kind == "hf":
        if numbers and max(numbers) > known[0]:
            raise _unfit(kind, f"{layers}, and a layer {max(numbers)}", where)
        return {number: "final_norm" if number == known[0] else f"resid.{number}" for number in numbers}
    if known and (len(known) != len(numbers) or list(numbers) != list(range(len(numbers)))):
        raise _unfit(kind, f"{layers}, and {len(numbers)} layers", where)
    return {number: f"resid.{known[number] if known else number}" for number in numbers}


def _unfit(kind: str, found: str, where: str) -> BadParameter:
    return BadParameter("layers of another form", needed=_MEANINGS[kind], found=found, where=where)
