"""Checks the types of facts and settings in a results file, which may have been edited."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Counts = dict[str, int] | None
Number = float | None
Text = str | None

FACTS: Mapping[str, Any] = {
    "alike_labels": list[list[str]] | None,
    "alone": Number,
    "classes": Number,
    "clusters": Counts,
    "conflicting_inputs": Number,
    "cut_inputs": Counts,
    "duplicate_sentences": Number,
    "entropy_bits": Number,
    "excluded": Counts,
    "group_name": Text,
    "level": Text,
    "like_groups": dict[str, dict[str, int]] | None,
    "lone_label": dict[str, str] | None,
    "majority": Number,
    "majority_label": Text,
    "mean": Number,
    "model": dict[str, str | int | bool] | None,
    "merged_values": list[str] | None,
    "odd_numbers": dict[str, str | int] | None,
    "one_label": dict[str, str] | None,
    "outlier": dict[str, str | float] | None,
    "recomposed": Counts,
    "rows": Counts,
    "sentences": Counts,
    "shared_inputs": dict[str, dict[str, int]] | None,
    "std": Number,
    "type_overlap": Number,
    "unit": Text,
    "unit_reason": Text,
    "unknown_pieces": Number,
    "unseen_classes": Number,
    "width": Number,
}
PROVENANCE: Mapping[str, Any] = {
    "cluster": Text,
    "content_id": Text,
    "corpus": Text,
    "correction": Text,
    "imported": dict[str, Any] | None,
    "labels": Text,
    "model": Text,
    "model_identity": Text,
    "recipe": dict[str, Any],
    "resamples": int | None,
    "root_seed": int | None,
    "rows": Text,
    "run": Text,
    "saved": bool | str | None,
    "seeds": int | None,
    "store_id": Text,
    "unit": Text,
}
SETTINGS: Mapping[str, Any] = {
    "criteria": dict[str, float],
    "model_facts": dict[str, str | int | bool] | None,
    "permutations": int | None,
    "seed": int | None,
    "slope_rows": int | None,
    "unit": Text,
}
_PARTS_OF_RECIPE = ("probe",)


@cache
def _reader(shape: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def check_shapes(facts: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Check that facts and provenance of a result have the expected types; unknown names are accepted.

    Raises:
        ValueError: an entry has another type; the message names it.
    """
    _check("facts", facts, FACTS)
    _check("provenance", provenance, PROVENANCE)
    recipe = provenance.get("recipe") or {}
    if not all(isinstance(recipe.get(part, {}), dict) for part in _PARTS_OF_RECIPE):
        raise ValueError("provenance.recipe has another shape")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check that the settings of a use result have the expected types; unknown names are accepted.

    Raises:
        ValueError: an entry has another type; the message names it.
    """
    _check("settings", settings, SETTINGS)


def _check(title: str, given: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    for name in given.keys() & shapes.keys():
        try:
            _reader(shapes[name]).validate_python(given[name], strict=True)
        except ValueError:
            raise ValueError(f"{title}.{name} has another shape: {str(given[name])[:100]}") from None
